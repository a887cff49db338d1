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
    let (_, std) = statistics(rewards);
    centered(rewards, group, |_| std + eps)
}

/// As [`group_centered`], each group divided by its own standard deviation.
pub fn group_normalised<G: Ord>(rewards: &[f64], group: &[G], eps: f64) -> Advantages {
    centered(rewards, group, |of_group| of_group + eps)
}

/// Rewards less the mean of their group, over what `divisor` makes of its standard deviation.
fn centered<G: Ord>(rewards: &[f64], group: &[G], divisor: impl Fn(f64) -> f64) -> Advantages {
    assert_eq!(rewards.len(), group.len());
    let (_, std) = statistics(rewards);
    let mut values = vec![0.0; rewards.len()];
    let mut zero_variance_groups = 0;
    let members = members(group);
    for images in &members {
        let of_group: Vec<f64> = images.iter().map(|i| rewards[*i]).collect();
        if are_equal(&of_group) {
            zero_variance_groups += 1;
            continue;
        }
        let (centre, of_group) = statistics(&of_group);
        for i in images {
            values[*i] = (rewards[*i] - centre) / divisor(of_group);
        }
    }
    Advantages { values, std, zero_variance_groups, groups: members.len() }
}

/// The mean over groups of the standard deviation of their rewards: what there is to learn from.
pub fn group_spread<G: Ord>(rewards: &[f64], group: &[G]) -> f64 {
    let members = members(group);
    let of_group = |images: &Vec<usize>| statistics(&images.iter().map(|i| rewards[*i]).collect::<Vec<_>>()).1;
    members.iter().map(of_group).sum::<f64>() / members.len() as f64
}

/// What `choose` makes of the rewards of each group; of one whose rewards are all equal nothing, unless it is to.
pub fn chosen<G: Ord>(
    rewards: &[f64],
    group: &[G],
    skip_equal: bool,
    choose: impl Fn(&[f64]) -> Vec<f64>,
) -> Advantages {
    assert_eq!(rewards.len(), group.len());
    let members = members(group);
    let (mut values, mut zero_variance_groups) = (vec![0.0; rewards.len()], 0);
    for images in &members {
        let of_group: Vec<f64> = images.iter().map(|i| rewards[*i]).collect();
        zero_variance_groups += usize::from(are_equal(&of_group));
        if !(skip_equal && are_equal(&of_group)) {
            images.iter().zip(choose(&of_group)).for_each(|(i, value)| values[*i] = value);
        }
    }
    Advantages { values, std: statistics(rewards).1, zero_variance_groups, groups: members.len() }
}

/// The number of each image's group, in the order of the groups' first images.
pub fn numbered<G: Ord>(group: &[G]) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    group
        .iter()
        .map(|g| {
            let next = numbers.len();
            *numbers.entry(g).or_insert(next)
        })
        .collect()
}

/// The least that rewards are divided by where each is normalised.
const STD_FLOOR: f64 = 1e-6;

/// `Σ_k w_k·(r_k − mean of its group) / max(std of its group, 1e-6)` of rewards `r_k` with weights `w_k`: each counts by its
/// weight, whatever its scale. With [`group_centered`] after it this is GDPO (arXiv 2601.05242), as Flow-Factory has it. A
/// reward that is equal in a group says nothing there.
pub fn group_normalised_sum<G: Ord>(rewards: &[(f64, Vec<f64>)], group: &[G]) -> Vec<f64> {
    let mut sum = vec![0.0; group.len()];
    let members = members(group);
    for (weight, rewards) in rewards {
        assert_eq!(rewards.len(), group.len());
        for images in &members {
            let of_group: Vec<f64> = images.iter().map(|i| rewards[*i]).collect();
            if are_equal(&of_group) {
                continue;
            }
            let (centre, std) = statistics(&of_group);
            for i in images {
                sum[*i] += weight * (rewards[*i] - centre) / std.max(STD_FLOOR);
            }
        }
    }
    sum
}

/// The members of each group.
fn members<G: Ord>(group: &[G]) -> Vec<Vec<usize>> {
    let mut members: BTreeMap<&G, Vec<usize>> = BTreeMap::new();
    for (i, g) in group.iter().enumerate() {
        members.entry(g).or_default().push(i);
    }
    members.into_values().collect()
}

/// Mean and population standard deviation.
fn statistics(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    (mean, (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
}

fn are_equal(x: &[f64]) -> bool {
    x.windows(2).all(|w| w[0] == w[1])
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

    /// T8: however the images are handed out and gathered again, each has the advantage that it has in one place.
    #[test]
    fn t8_advantages_do_not_depend_on_the_order_in_which_images_are_gathered() {
        let rewards: Vec<f64> = (0..64).map(|i| f64::from(i * i % 7) / 8.0).collect();
        let group: Vec<usize> = (0..64).map(|i| i / 8).collect();
        let whole = group_centered(&rewards, &group, 1e-4);
        for ranks in [2, 4, 8] {
            // Rank by rank: every `ranks`-th image.
            let order: Vec<usize> = (0..ranks).flat_map(|rank| (rank..64).step_by(ranks)).collect();
            let of = |x: &[f64]| order.iter().map(|i| x[*i]).collect::<Vec<_>>();
            let groups: Vec<usize> = order.iter().map(|i| group[*i]).collect();
            // Eighths, and means of 8 and 64 of them, add up without rounding in any order.
            assert_eq!(group_centered(&of(&rewards), &groups, 1e-4).values, of(&whole.values), "{ranks}");
        }
    }

    #[test]
    fn scale_is_the_population_deviation_of_all_rewards() {
        let a = group_centered(&[0.0, 1.0, 10.0, 11.0], &[0, 0, 1, 1], 0.0);
        let std = 25.25f64.sqrt();
        assert!((a.std - std).abs() < 1e-12);
        assert!((a.values[3] - 0.5 / std).abs() < 1e-12);
    }

    #[test]
    fn the_spread_is_that_within_groups_alone() {
        let spread = group_spread(&[0.0, 1.0, 10.0, 13.0, 7.0], &[0, 0, 1, 1, 2]);
        assert!((spread - 2.0 / 3.0).abs() < 1e-12, "{spread}");
    }

    #[test]
    fn a_group_over_its_own_deviation_does_not_feel_the_others() {
        let rewards = [1.0, 3.0, 10.0, 30.0, 5.0, 5.0];
        let a = group_normalised(&rewards, &[0, 0, 1, 1, 2, 2], 1e-4);
        let want = [-1.0 / 1.0001, 1.0 / 1.0001, -10.0 / 10.0001, 10.0 / 10.0001, 0.0, 0.0];
        assert!(a.values.iter().zip(want).all(|(a, w)| (a - w).abs() < 1e-12), "{:?}", a.values);
        assert_eq!((a.zero_variance_groups, a.groups), (1, 3));
    }

    #[test]
    fn groups_are_numbered_by_their_first_images() {
        assert_eq!(numbered(&["b", "a", "b", "c", "a"]), [0, 1, 0, 2, 1]);
    }

    #[test]
    fn t6_equal_rewards_give_exactly_zero() {
        let a = group_centered(&[0.1; 6], &[0, 0, 0, 1, 1, 1], 1e-4);
        assert!(a.values.iter().all(|v| *v == 0.0));
        assert_eq!(a.zero_variance_groups, 2);
    }

    #[test]
    fn rewards_that_are_normalised_one_by_one_give_what_numpy_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gdpo.json");
        let fixture: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let list = |value: &serde_json::Value| -> Vec<f64> {
            value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
        };
        let group: Vec<i64> = list(&fixture["group"]).into_iter().map(|g| g as i64).collect();
        let rewards = fixture["rewards"].as_array().unwrap().iter().map(list);
        let rewards: Vec<(f64, Vec<f64>)> = list(&fixture["weights"]).into_iter().zip(rewards).collect();
        let close = |got: &[f64], want: &[f64]| {
            let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
            assert!(got.len() == want.len() && worst < 1e-9, "{worst}");
        };
        let sum = group_normalised_sum(&rewards, &group);
        close(&sum, &list(&fixture["sum"]));
        let advantages = group_centered(&sum, &group, 0.0);
        close(&advantages.values, &list(&fixture["advantages"]));
        // One group that no reward can tell apart.
        assert_eq!(advantages.zero_variance_groups, 1);
        // A reward on another scale counts the same, as a sum that is not normalised would not have it.
        let scaled: Vec<_> = rewards.iter().map(|(w, r)| (*w, r.iter().map(|x| 1000.0 * x).collect())).collect();
        let other = group_normalised_sum(&scaled[..1], &group);
        close(&other, &group_normalised_sum(&rewards[..1], &group));
    }
}
