//! From rewards to advantages: how much better an image is than the others of its prompt.

use std::collections::BTreeMap;

/// Rewards of one epoch, centred and scaled.
#[derive(Clone, Debug)]
pub struct Advantages {
    /// One per image.
    pub values: Vec<f64>,
    /// Standard deviation of all rewards (population).
    pub std: f64,
    /// Prompts whose images all have the same reward: they teach nothing but the anchor.
    pub zero_variance_groups: usize,
    /// Number of prompts.
    pub groups: usize,
}

/// `A_i = (r_i − mean of its group) / (std of all rewards + eps)`; images with equal `group` are one group.
/// Statistics are population statistics in f64. If all rewards are equal, every advantage is exactly zero.
pub fn group_centered<G: Ord>(rewards: &[f64], group: &[G], eps: f64) -> Advantages {
    assert_eq!(rewards.len(), group.len());
    let mut members: BTreeMap<&G, Vec<usize>> = BTreeMap::new();
    for (i, g) in group.iter().enumerate() {
        members.entry(g).or_default().push(i);
    }
    let mean = |x: &mut dyn Iterator<Item = f64>, n: usize| x.sum::<f64>() / n as f64;
    let all = mean(&mut rewards.iter().copied(), rewards.len());
    let std = mean(&mut rewards.iter().map(|r| (r - all).powi(2)), rewards.len()).sqrt();
    let mut values = vec![0.0; rewards.len()];
    let mut zero_variance_groups = 0;
    for images in members.values() {
        let first = rewards[images[0]];
        if images.iter().all(|i| rewards[*i] == first) {
            zero_variance_groups += 1;
            continue;
        }
        let centre = mean(&mut images.iter().map(|i| rewards[*i]), images.len());
        for i in images {
            values[*i] = (rewards[*i] - centre) / (std + eps);
        }
    }
    Advantages { values, std, zero_variance_groups, groups: members.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t7_advantages_of_each_prompt_add_up_to_zero() {
        let rewards: Vec<f64> = (0..24).map(|i| f64::from(i * i % 7) / 7.0).collect();
        let group: Vec<usize> = (0..24).map(|i| i % 5).collect();
        let a = group_centered(&rewards, &group, 1e-4);
        for g in 0..5 {
            let total: f64 = (0..24).filter(|i| group[*i] == g).map(|i| a.values[i]).sum();
            assert!(total.abs() < 1e-12);
        }
        assert_eq!(a.groups, 5);
    }

    #[test]
    fn scale_is_the_population_deviation_of_all_rewards() {
        let a = group_centered(&[0.0, 1.0, 10.0, 11.0], &[0, 0, 1, 1], 0.0);
        let std = 25.25f64.sqrt();
        assert!((a.std - std).abs() < 1e-12);
        assert!((a.values[3] - 0.5 / std).abs() < 1e-12);
    }

    #[test]
    fn t6_equal_rewards_give_exactly_zero() {
        let a = group_centered(&[0.1; 6], &[0, 0, 0, 1, 1, 1], 1e-4);
        assert!(a.values.iter().all(|v| *v == 0.0));
        assert_eq!(a.zero_variance_groups, 2);
    }
}
