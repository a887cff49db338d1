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

#[test]
fn the_built_in_vocabulary_gives_the_ids_of_transformers_and_of_open_clip() {
    let rows: Vec<(String, Vec<u32>, Vec<u32>)> = read_json(&fixture("clip_ids.json")).unwrap();
    assert!(rows.len() > 300);
    let (clip, open_clip) = (Tokenizer::clip(), Tokenizer::open_clip());
    assert_eq!((clip.max_length(), open_clip.max_length()), (Some(77), Some(77)));
    // What comes after the first end token changes nothing: it is not seen.
    let cut = |ids: &[u32]| ids[..=ids.iter().position(|id| *id == 49407).unwrap()].to_vec();
    let mut wrong = Vec::new();
    for (text, transformers, cleaned) in &rows {
        for (who, tokenizer, want) in [("transformers", &clip, transformers), ("open_clip", &open_clip, cleaned)] {
            let (found, want) = (cut(&tokenizer.encode(text, 77).unwrap().ids), cut(want));
            if found != want {
                wrong.push(format!("{who}: {text:?}: {found:?}, expected {want:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {}", wrong.len(), rows.len(), wrong.join("\n"));
}
