//! Configurations as dotted keys, and where they differ.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

/// Every key of `table` with its value, as `rollout.batch_size`.
pub fn flat(table: &Table) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => out.extend(flat(inner).into_iter().map(|(k, v)| (format!("{key}.{k}"), v))),
            Value::String(text) => _ = out.insert(key.clone(), text.clone()),
            other => _ = out.insert(key.clone(), other.to_string()),
        }
    }
    out
}

/// A key and what each of several configurations says to it; `None` where one has no such key.
pub type Difference = (String, Vec<Option<String>>);

/// The keys that not all of `tables` have with the same value.
pub fn differences(tables: &[&Table]) -> Vec<Difference> {
    let flats: Vec<BTreeMap<String, String>> = tables.iter().map(|t| flat(t)).collect();
    let keys: BTreeSet<&String> = flats.iter().flat_map(BTreeMap::keys).collect();
    let said = |key: &String| flats.iter().map(|f| f.get(key).cloned()).collect::<Vec<_>>();
    let all = keys.into_iter().map(|key| (key.clone(), said(key)));
    all.filter(|(_, values)| values.windows(2).any(|w| w[0] != w[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_keys_with_other_values_or_none() {
        let tables = [
            "seed = 1\nmodel = 'a'\n[rollout]\nbatch_size = 4\n[rewards]\ngeneval = 1.0",
            "seed = 1\nmodel = 'b'\n[rollout]\nbatch_size = 4\n[rewards.pickscore]\nweight = 2.0",
        ]
        .map(|text| text.parse::<Table>().unwrap());
        let some = |text: &str| Some(text.to_string());
        assert_eq!(
            differences(&[&tables[0], &tables[1]]),
            [
                ("model".to_string(), vec![some("a"), some("b")]),
                ("rewards.geneval".to_string(), vec![some("1.0"), None]),
                ("rewards.pickscore.weight".to_string(), vec![None, some("2.0")]),
            ]
        );
        assert!(differences(&[&tables[0], &tables[0]]).is_empty() && differences(&[&tables[0]]).is_empty());
        assert_eq!(flat(&tables[0])["rollout.batch_size"], "4");
    }
}
