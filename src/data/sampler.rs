//! Which prompts an epoch samples images for, and in which order: the k-repeat group sampler (spec §2.7). A pure
//! function of seed and epoch, so every process knows the whole list and resuming needs no position.

use crate::device::philox::{Key, Purpose};

/// One image to sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sample {
    /// Number of the prompt in the dataset; images of equal prompt form a group.
    pub prompt: usize,
    /// Which of the prompt's images this is.
    pub repeat: u32,
}

/// The images of `epoch`: `prompts_per_epoch` different prompts of `0..dataset_len`, each `repeats` times, shuffled.
pub fn groups(dataset_len: usize, prompts_per_epoch: usize, repeats: usize, seed: u64, epoch: u32) -> Vec<Sample> {
    assert!(prompts_per_epoch <= dataset_len, "{prompts_per_epoch} different prompts of {dataset_len}");
    let mut stream = Key { epoch, ..Key::new(seed, Purpose::PromptOrder) }.stream();
    let mut order: Vec<usize> = (0..dataset_len).collect();
    stream.shuffle(&mut order);
    let chosen = &order[..prompts_per_epoch];
    let all = chosen.iter().flat_map(|p| (0..repeats).map(|repeat| Sample { prompt: *p, repeat: repeat as u32 }));
    let mut samples: Vec<Sample> = all.collect();
    stream.shuffle(&mut samples);
    samples
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn t9_each_prompt_comes_exactly_k_times_with_every_repeat() {
        for epoch in 0..20 {
            let samples = groups(50, 12, 6, 42, epoch);
            let mut repeats: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
            for s in &samples {
                assert!(s.prompt < 50);
                assert!(repeats.entry(s.prompt).or_default().insert(s.repeat), "{s:?} twice");
            }
            assert_eq!(repeats.len(), 12);
            assert!(repeats.values().all(|r| *r == (0..6).collect()));
        }
    }

    #[test]
    fn t9_the_list_is_a_function_of_seed_and_epoch() {
        let samples = groups(50, 12, 6, 42, 3);
        assert_eq!(samples, groups(50, 12, 6, 42, 3));
        assert_ne!(samples, groups(50, 12, 6, 42, 4));
        assert_ne!(samples, groups(50, 12, 6, 43, 3));
        // The list itself, which resumed and published runs rely on.
        let first: Vec<(usize, u32)> = groups(10, 3, 2, 42, 0).iter().map(|s| (s.prompt, s.repeat)).collect();
        assert_eq!(first, [(4, 1), (8, 1), (4, 0), (9, 1), (9, 0), (8, 0)]);
    }

    #[test]
    fn every_prompt_is_drawn_equally_often_in_the_long_run() {
        let mut drawn = [0u32; 10];
        for epoch in 0..2000 {
            groups(10, 3, 1, 7, epoch).iter().for_each(|s| drawn[s.prompt] += 1);
        }
        // Binomial(2000, 0.3): four standard deviations.
        let spread = 4.0 * (2000.0f64 * 0.3 * 0.7).sqrt();
        assert!(drawn.iter().all(|n| (f64::from(*n) - 600.0).abs() < spread), "{drawn:?}");
    }
}
