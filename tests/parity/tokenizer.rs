use std::collections::BTreeMap;
use std::path::Path;

use engine::io::read_json;
use engine::models::tokenizer::Tokenizer;

use super::fixture;

#[derive(serde::Deserialize)]
struct Oracle {
    strings: Vec<String>,
    tokenizers: BTreeMap<String, Ids>,
}

#[derive(serde::Deserialize)]
struct Ids {
    max_length: usize,
    ids: Vec<Vec<u32>>,
}

#[test]
fn every_string_gets_the_ids_that_transformers_gives_it() {
    let oracle: Oracle = read_json(&fixture("tokenizers.json")).unwrap();
    assert!(oracle.tokenizers.len() >= 5 && oracle.strings.len() > 300);
    for (folder, want) in oracle.tokenizers {
        let tokenizer = Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(&folder)).unwrap();
        if !folder.ends_with("tokenizer_3") {
            assert_eq!(tokenizer.max_length(), Some(want.max_length), "{folder}");
        }
        for (text, ids) in oracle.strings.iter().zip(want.ids) {
            assert_eq!(tokenizer.encode(text, want.max_length).unwrap().ids, ids, "{folder}: {text:?}");
        }
    }
}
