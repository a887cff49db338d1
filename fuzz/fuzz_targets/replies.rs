//! What servers of rewards answer: a score for every picture, or an error in words.
#![no_main]

use std::sync::LazyLock;

use engine::rewards::http::vlm::{self, Asking};
use engine::rewards::http::{check, flow_factory, json, pickle};
use engine_fuzz::{check as words, choice};
use libfuzzer_sys::fuzz_target;

/// Pictures that were asked about.
const COUNT: usize = 2;

fuzz_target!(|data: &[u8]| {
    static ASKING: LazyLock<Vec<regex::bytes::Regex>> = LazyLock::new(|| {
        let all = [Asking::unified_reward(), Asking::qwen_vl()];
        all.iter().map(|asking| asking.regex().expect("a pattern")).collect()
    });
    let Some((which, answer)) = choice(data, 5) else { return };
    let scores = match which {
        0 => json::read(answer, COUNT),
        1 => flow_factory::read(answer),
        2 => pickle::read(answer, COUNT),
        _ => {
            if let Some(score) = words(vlm::read(answer, &ASKING[which - 3])) {
                assert!((1.0..6.0).contains(&score) || which == 4);
            }
            return;
        }
    };
    if let Some(scores) = words(scores.and_then(|scores| check(scores, COUNT))) {
        assert_eq!(scores.len(), COUNT);
        assert!(scores.iter().all(|score| score.value.is_finite()));
    }
});
