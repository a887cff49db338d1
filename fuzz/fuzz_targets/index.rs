//! What lists other files: `model_index.json`, the index of shards, and a branch in the hub's cache.
#![no_main]

use engine::io::TensorFile;
use engine::models::index::{self, ModelIndex};
use engine_fuzz::{check, choice, folder, write_files};
use libfuzzer_sys::fuzz_target;

const SHARDS: [&str; 2] = ["model.safetensors.index.json", "model-00001-of-00002.safetensors"];

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = choice(data, 3) else { return };
    let at = |name: &str| {
        let folder = folder().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    match which {
        0 => {
            let folder = at("pipeline");
            write_files(&folder, &["model_index.json"], data);
            check(ModelIndex::load(&folder));
            if let Some(index) = check(ModelIndex::of_any(&folder)) {
                index.class();
                check(index.require("vae"));
            }
        }
        1 => {
            let folder = at("component");
            write_files(&folder, &SHARDS, data);
            if let Some(file) = check(TensorFile::open_component(&folder, "model", None)) {
                file.entries().for_each(|(_, entry)| assert_eq!(entry.raw().len(), entry.size()));
            }
        }
        _ => {
            let folder = at("cache");
            at("cache/refs");
            at("cache/snapshots/0123abcd");
            write_files(&folder, &["refs/main"], data);
            let found = index::folder(&folder);
            assert!(found == folder || found == folder.join("snapshots/0123abcd"), "{}", found.display());
        }
    }
});
