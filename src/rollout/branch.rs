//! Rollouts that branch (TempFlow-GRPO, arXiv 2508.04324): samples go along the ODE as trunks, and images are forks of them, which
//! leave by one step with noise and go on along the ODE. What tells forks of a step apart is that noise alone.

use std::ops::Range;

/// An image that leaves its trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The number of the trunk among an epoch's samples.
    pub trunk: usize,
    /// The step with noise.
    pub step: usize,
    /// Which of the trunk's forks at that step it is.
    pub index: usize,
}

impl Fork {
    /// Which draw of its trunk its noise is.
    pub fn draw(&self) -> u32 {
        // Steps and forks of a step are fewer.
        (self.index << 16 | self.step) as u32
    }

    /// The name of the group that it is compared with: the forks of its trunk at its step.
    pub fn group(&self) -> String {
        format!("{} {}", self.trunk, self.step)
    }
}

/// The forks of `trunks` trunks with `counts[i]` of each at step `i`: by step, then by trunk.
pub fn forks(counts: &[usize], trunks: usize) -> Vec<Fork> {
    let of_step = |(step, count): (usize, &usize)| {
        let count = *count;
        (0..trunks).flat_map(move |trunk| (0..count).map(move |index| Fork { trunk, step, index }))
    };
    counts.iter().enumerate().flat_map(of_step).collect()
}

/// The ranges of `forks`, which are ordered by step, that have a step in common.
pub fn stages(forks: &[Fork]) -> Vec<Range<usize>> {
    let mut first = 0;
    let of_step = forks.chunk_by(|a, b| a.step == b.step).map(|same| {
        first += same.len();
        first - same.len()..first
    });
    of_step.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// T17: every trunk has its forks at each step, each with noise of its own, and no step mixes with another.
    #[test]
    fn t17_forks_are_counted_grouped_and_drawn_once() {
        let counts = [3, 0, 1, 2];
        let forks = forks(&counts, 5);
        assert_eq!(forks.len(), 30);
        let mut groups: BTreeMap<String, Vec<Fork>> = BTreeMap::new();
        forks.iter().for_each(|fork| groups.entry(fork.group()).or_default().push(*fork));
        assert_eq!(groups.len(), 5 * 3);
        for members in groups.values() {
            let Fork { trunk, step, .. } = members[0];
            let want: Vec<Fork> = (0..counts[step]).map(|index| Fork { trunk, step, index }).collect();
            assert_eq!(*members, want);
        }
        let draws: BTreeSet<(usize, u32)> = forks.iter().map(|fork| (fork.trunk, fork.draw())).collect();
        assert_eq!(draws.len(), forks.len());
        assert_eq!(stages(&forks), [0..15, 15..20, 20..30]);
        assert!(
            stages(&forks)
                .into_iter()
                .all(|stage| forks[stage.clone()].iter().all(|f| f.step == forks[stage.start].step))
        );
    }

    /// More trunks or other counts elsewhere change no fork's draw.
    #[test]
    fn a_fork_s_noise_depends_on_its_trunk_step_and_number_alone() {
        let draws = |counts: &[usize], trunks| -> BTreeSet<(usize, usize, usize, u32)> {
            forks(counts, trunks).iter().map(|f| (f.trunk, f.step, f.index, f.draw())).collect()
        };
        assert!(draws(&[2, 0, 3], 2).is_subset(&draws(&[2, 4, 5], 3)));
    }
}
