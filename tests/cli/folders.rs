//! Folders that lack something, and what a whole one looks like.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{refuses, says};
use crate::parity::fixture;

fn refuses_folder(folder: &Path, words: &[&str]) {
    refuses(&["inspect".as_ref(), folder.as_os_str()], words);
}

#[test]
fn a_missing_path_is_named() {
    refuses(&["inspect", "/no/such/place"], &["no such file or folder: /no/such/place"]);
}

#[test]
fn an_empty_folder_says_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    refuses_folder(folder.path(), &["nothing to inspect", "model_index.json", "*.safetensors"]);
}

#[test]
fn a_pipeline_without_one_of_its_components_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let index = std::fs::read(fixture("pipeline/no_t5/model_index.json")).unwrap();
    std::fs::write(folder.path().join("model_index.json"), index).unwrap();
    refuses_folder(folder.path(), &["component 'scheduler'", "no such folder"]);
    std::fs::write(folder.path().join("model_index.json"), "{").unwrap();
    refuses_folder(folder.path(), &["model_index.json: not the JSON that was expected"]);
}

#[test]
fn an_index_with_a_missing_shard_or_tensor_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let index = |map: &str| {
        let text = format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#);
        std::fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
    };
    let shard = "model-00001-of-00001.safetensors";
    index(&format!(r#"{{"a":"{shard}"}}"#));
    refuses_folder(folder.path(), &["index.json", shard, "No such file"]);
    std::fs::write(folder.path().join(shard), super::raw_file("{}", 0)).unwrap();
    refuses_folder(folder.path(), &["tensor 'a' is not in", shard]);
    index("7");
    refuses_folder(folder.path(), &["index.json: not the JSON that was expected"]);
}

#[test]
fn a_pipeline_is_shown_with_classes_configs_and_sizes() {
    let out = says(&["inspect".as_ref(), fixture("pipeline/no_t5").as_os_str()]);
    for word in [
        "StableDiffusion3Pipeline",
        "transformer     SD3Transformer2DModel: 85 tensors, 90.9 k parameters, 355.0 KiB, F32",
        "num_layers = 2",
        "shift = 3.0",
        "total           331 tensors",
    ] {
        assert!(out.contains(word), "'{word}' is not in: {out}");
    }
    let json = says(&["inspect".as_ref(), "--json".as_ref(), fixture("pipeline/no_t5").as_os_str()]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["total"]["tensors"], 331);
    assert_eq!(json["class"], "StableDiffusion3Pipeline");
}

#[test]
fn five_gigabytes_are_inspected_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let header = r#"{"a":{"dtype":"BF16","shape":[2500000000],"data_offsets":[0,5000000000]}}"#;
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, super::raw_file(header, 0)).unwrap();
    // A file of nothing but a hole: it takes no room, and reading it all would take seconds.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(8 + header.len() as u64 + 5_000_000_000).unwrap();
    let start = Instant::now();
    let out = says(&["inspect".as_ref(), folder.path().as_os_str()]);
    assert!(out.contains("2.500 B parameters, 4.7 GiB, BF16"), "{out}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
