//! Groups that rewards did not judge as a whole: images are compared with the others of their prompt, and with some of them
//! missing the comparison would be another.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::rewards::Unavailable;

/// What is left of an epoch's images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The images of groups that were judged as a whole, in their order.
    pub images: Vec<usize>,
    /// The number of other groups.
    pub skipped: usize,
}

/// The images whose groups have no `missing` one; those with equal `group` are one.
///
/// # Errors
/// [`Unavailable`] if none is left: what keeps rewards from judging anything will not pass by going on.
pub fn judged(missing: &BTreeMap<usize, String>, group: &[&str]) -> Result<Judged> {
    let incomplete: BTreeSet<&str> = missing.keys().map(|i| group[*i]).collect();
    let images: Vec<usize> = (0..group.len()).filter(|i| !incomplete.contains(group[*i])).collect();
    match missing.values().next() {
        Some(why) if images.is_empty() => Err(Unavailable(format!("no group was judged as a whole: {why}")).into()),
        _ => Ok(Judged { images, skipped: incomplete.len() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_with_one_missing_image_is_left_out_as_a_whole() {
        let missing = |images: &[usize]| images.iter().map(|i| (*i, format!("why {i}"))).collect::<BTreeMap<_, _>>();
        let group = ["a", "a", "b", "b", "a", "c"];
        assert_eq!(judged(&missing(&[]), &group).unwrap(), Judged { images: (0..6).collect(), skipped: 0 });
        assert_eq!(judged(&missing(&[4]), &group).unwrap(), Judged { images: vec![2, 3, 5], skipped: 1 });
        assert_eq!(judged(&missing(&[0, 1, 5]), &group).unwrap(), Judged { images: vec![2, 3], skipped: 2 });
        let e = judged(&missing(&[1, 2, 5]), &group).unwrap_err();
        assert_eq!(e.downcast_ref::<Unavailable>().unwrap().to_string(), "no group was judged as a whole: why 1");
    }
}
