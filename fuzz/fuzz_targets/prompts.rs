//! A file of prompts, and what the rewards ask of them.
#![no_main]

use std::sync::LazyLock;

use engine::data::prompts::PromptSet;
use engine::device::Device;
use engine::rewards::{Options, WeightedSum, build};
use engine_fuzz::{check, choice, folder};
use libfuzzer_sys::fuzz_target;

static REWARDS: LazyLock<WeightedSum> = LazyLock::new(|| {
    // A word is kept as paths are.
    let options = Options::of_path("detector", "shapes".as_ref());
    let geneval = build("geneval", options, &Device::Cpu).expect("a reward without a model");
    WeightedSum::new(vec![(geneval, 1.0)]).expect("one reward")
});

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = choice(data, 2) else { return };
    let path = folder().join(["a.jsonl", "a.txt"][which]);
    std::fs::write(&path, data).unwrap();
    if let Some(prompts) = check(PromptSet::load(&path)) {
        assert!(prompts.prompts.iter().all(|p| !p.text.is_empty() && p.text == p.text.trim()));
        check(REWARDS.check(&prompts));
    }
});
