use std::path::Path;

use super::Tokenizer;

const CONFIG: &str = r#"{"model_max_length": 8, "pad_token": "!"}"#;

fn folder(config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let words = r#"{"!":0,"a":1,"b":2,"a</w>":3,"b</w>":4,"ab</w>":5,"<|startoftext|>":6,"<|endoftext|>":7}"#;
    std::fs::write(dir.path().join("vocab.json"), words).unwrap();
    std::fs::write(dir.path().join("merges.txt"), "#version: 0.2\na b</w>\n").unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    dir
}

fn message(dir: &Path) -> String {
    format!("{:#}", Tokenizer::load(dir).err().expect("must be refused"))
}

#[test]
fn a_text_that_is_too_long_keeps_begin_and_end_and_counts_what_was_dropped() {
    let dir = folder(CONFIG);
    let t = Tokenizer::load(dir.path()).unwrap();
    let fits = t.encode("AB a", 5).unwrap();
    assert_eq!((fits.ids, fits.dropped), (vec![6, 5, 3, 7, 0], 0));
    let cut = t.encode("ab a b a", 4).unwrap();
    assert_eq!((cut.ids, cut.dropped), (vec![6, 5, 3, 7], 2));
    assert!(t.encode("a", 1).is_err());
}

#[test]
fn the_length_limit_may_be_missing_or_stand_for_infinity() {
    for (config, want) in [
        (CONFIG, Some(8)),
        ("{}", None),
        (r#"{"model_max_length": null}"#, None),
        (r#"{"model_max_length": 1000000000000000019884624838656}"#, None),
        (r#"{"model_max_length": 1e30}"#, None),
        (r#"{"model_max_length": 77.0}"#, Some(77)),
    ] {
        assert_eq!(Tokenizer::load(folder(config).path()).unwrap().max_length(), want, "{config}");
    }
    assert!(message(folder(r#"{"model_max_length": "77"}"#).path()).contains("'model_max_length'"));
}

#[test]
fn special_tokens_may_be_strings_or_objects_and_live_in_either_file() {
    let token = |content: &str| format!(r#"{{"content": "{content}", "lstrip": false, "normalized": true}}"#);
    let dir = folder("{}");
    std::fs::write(dir.path().join("special_tokens_map.json"), format!(r#"{{"pad_token": {}}}"#, token("!"))).unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap().encode("a", 4).unwrap().ids, [6, 3, 7, 0]);
    let dir = folder(&format!(r#"{{"pad_token": {}}}"#, token("!")));
    assert_eq!(Tokenizer::load(dir.path()).unwrap().encode("a", 4).unwrap().ids, [6, 3, 7, 0]);
    assert_eq!(Tokenizer::load(folder("{}").path()).unwrap().encode("a", 4).unwrap().ids, [6, 3, 7, 7]);
}

#[test]
fn a_damaged_folder_is_refused_with_the_name_of_the_file() {
    let dir = folder(CONFIG);
    std::fs::write(dir.path().join("merges.txt"), "a b</w>\na b c\n").unwrap();
    assert!(message(dir.path()).contains("merges.txt, line 2"));
    std::fs::write(dir.path().join("merges.txt"), "b a</w>\n").unwrap();
    assert!(message(dir.path()).contains("'ba</w>' is not in vocab.json"));
    std::fs::remove_file(dir.path().join("merges.txt")).unwrap();
    assert!(message(dir.path()).contains("looked for tokenizer.json"));
    assert!(message(&dir.path().join("nothing")).contains("no such folder"));
    let dir = folder(r#"{"pad_token": 3}"#);
    assert!(message(dir.path()).contains("key 'pad_token': not a token"));
}

/// A T5's folder with `more` in its `tokenizer.json`.
fn t5(more: &str, config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let vocab = r#"[["<pad>",0.0],["</s>",0.0],["<unk>",0.0],["▁a",-1.0],["b",-2.0]]"#;
    let whole = format!(r#"{{{more} "model": {{"type": "Unigram", "unk_id": 2, "vocab": {vocab}}}}}"#);
    std::fs::write(dir.path().join("tokenizer.json"), whole).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    dir
}

#[test]
fn a_t5_that_would_read_outside_of_its_character_map_or_fill_the_memory_is_refused() {
    assert_eq!(Tokenizer::load(t5("", "{}").path()).unwrap().encode("ab", 4).unwrap().ids, [3, 4, 1, 0]);
    // A trie of one unit, as if all texts led past its end; and one that claims four gigabytes.
    for map in [r#""BAAAAAAAAABhAA==""#, r#""/////wAAAAA=""#, "null"] {
        let normalizer = format!(r#""normalizer": {{"type": "Precompiled", "precompiled_charsmap": {map}}},"#);
        let message = message(t5(&normalizer, "{}").path());
        assert!(message.contains("tokenizer.json: precompiled_charsmap: it "), "{message}");
    }
    let message = message(t5("", r#"{"extra_ids": 1000000000000}"#).path());
    assert!(message.contains("'extra_ids' is 1000000000000, expected at most 10000"), "{message}");
}

#[test]
fn a_tokenizer_of_bert_without_a_vocabulary_is_refused_with_the_name_of_the_file() {
    for text in ["22", "[]", "{}", "{\"model\": 1}", "{\"model\": {\"vocab\": [1]}}"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        let Err(refused) = super::WordPiece::load(dir.path(), &[]) else { panic!("{text} is a vocabulary") };
        let refused = refused.to_string();
        assert!(refused.contains("tokenizer.json: no model.vocab of tokens and ids"), "{text}: {refused}");
    }
}
