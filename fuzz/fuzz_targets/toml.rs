//! The config of a run, with what `--set` changes in it; the paths in it are those of a small model.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use engine::config::{self, Job};
use engine::train::setup;
use engine_fuzz::{check, fixture, folder, write_files};
use libfuzzer_sys::fuzz_target;

static PROMPTS: LazyLock<PathBuf> = LazyLock::new(|| {
    let prompts = folder().join("prompts.txt");
    std::fs::write(&prompts, "a red circle\ntwo blue squares\na green field\n").unwrap();
    prompts
});

fuzz_target!(|data: &[u8]| {
    write_files(folder(), &["run.toml", "overrides"], data);
    let overrides = std::fs::read(folder().join("overrides")).unwrap_or_default();
    let overrides: Vec<String> = String::from_utf8_lossy(&overrides).lines().map(str::to_string).collect();
    let Some(mut raw) = check(config::load(&folder().join("run.toml"), &overrides)) else { return };
    (raw.model, raw.prompts.train, raw.prompts.eval) = (fixture("pipeline/no_t5"), PROMPTS.clone(), PROMPTS.clone());
    for job in [Job::Train, Job::Evaluate] {
        if let Some(planned) = check(setup::check(raw.clone(), job)) {
            planned.config.describe();
        }
    }
});
