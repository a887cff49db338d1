//! GenEval's decisions, as the public code takes them: the benchmark's own (`evaluation/evaluate_images.py` of
//! djghosh13/geneval) and the stricter and the dense one that flow_grpo's reward server trains on.

#[cfg(test)]
mod tests;

use super::Detection;
use crate::data::{Prompt, Relation};

/// Detections count above this score ..
pub(super) const THRESHOLD: f64 = 0.3;
/// .. and above this one where the task is counting.
const COUNTING_THRESHOLD: f64 = 0.9;
/// The most of one class that are looked at.
const MOST: usize = 16;
/// How far two objects must be apart to be left of or above each other, over the sum of their sizes.
const APART: f64 = 0.1;

/// What is said of one picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The mean of the partial credits: what training optimises. At most 1; below 0 where far too many are seen.
    pub dense: f64,
    /// Whether exactly what was asked for is seen; exclusions play no part.
    pub strict: bool,
    /// Whether at least what was asked for is seen and nothing that is excluded: the benchmark's measure.
    pub correct: bool,
}

/// Judges what was seen in the picture for `prompt`.
pub fn judge(seen: &[Detection], prompt: &Prompt) -> Verdict {
    let threshold = if prompt.tag.as_deref() == Some("counting") { COUNTING_THRESHOLD } else { THRESHOLD };
    let seen = Seen { sorted: filter(seen, threshold) };
    let (dense, strict) = strict(&seen, prompt);
    Verdict { dense, strict, correct: correct(&seen, prompt) }
}

/// The detections above `threshold`, surest first.
fn filter(seen: &[Detection], threshold: f64) -> Vec<&Detection> {
    let mut sorted: Vec<&Detection> = seen.iter().filter(|d| d.score > threshold).collect();
    sorted.sort_by(|a, b| b.score.total_cmp(&a.score));
    sorted
}

struct Seen<'a> {
    sorted: Vec<&'a Detection>,
}

impl<'a> Seen<'a> {
    fn of(&self, class: &str) -> Vec<&'a Detection> {
        self.sorted.iter().filter(|d| d.class == class).take(MOST).copied().collect()
    }
}

/// The dense score, and whether the strict rule holds.
fn strict(seen: &Seen, prompt: &Prompt) -> (f64, bool) {
    let mut credits = Vec::new();
    let mut all = true;
    let mut groups: Vec<Option<Vec<&Detection>>> = Vec::new();
    for clause in &prompt.include {
        let found = seen.of(&clause.class);
        let credit = |n: usize| 1.0 - clause.count.abs_diff(n) as f64 / clause.count as f64;
        let mut matched = found.len() == clause.count;
        credits.push(credit(found.len()));
        if !matched {
            if clause.color.is_some() || clause.position.is_some() {
                credits.push(0.0);
            }
        } else {
            if clause.color.is_some() {
                let right = found.iter().filter(|d| d.color == clause.color).count();
                credits.push(credit(right));
                matched = right == clause.count;
            }
            if let (Some((relation, target)), true) = (clause.position, matched) {
                match &groups[target] {
                    None => matched = false,
                    Some(others) => matched = everywhere(&found, relation, others),
                }
                if !matched {
                    credits.push(0.0);
                }
                // The public code adds this after a violation too, which so costs half of what one would expect.
                if groups[target].is_some() {
                    credits.push(1.0);
                }
            }
        }
        all &= matched;
        groups.push(matched.then_some(found));
    }
    let mean = if credits.is_empty() { 0.0 } else { credits.iter().sum::<f64>() / credits.len() as f64 };
    (mean, all)
}

/// Whether the benchmark counts the picture.
fn correct(seen: &Seen, prompt: &Prompt) -> bool {
    let mut all = true;
    let mut groups: Vec<Option<Vec<&Detection>>> = Vec::new();
    for clause in &prompt.include {
        let mut found = seen.of(&clause.class);
        found.truncate(clause.count);
        let enough = found.len() == clause.count;
        let colored = clause.color.is_none() || found.iter().all(|d| d.color == clause.color);
        let placed = clause.position.is_none_or(|(relation, target)| {
            groups[target].as_ref().is_some_and(|others| everywhere(&found, relation, others))
        });
        let matched = enough && colored && placed;
        all &= matched;
        groups.push(matched.then_some(found));
    }
    all && prompt.exclude.iter().all(|e| seen.of(&e.class).len() < e.count)
}

fn everywhere(found: &[&Detection], relation: Relation, others: &[&Detection]) -> bool {
    found.iter().all(|a| others.iter().all(|b| holds(&a.bounds, relation, &b.bounds)))
}

/// Whether the box `a` has `relation` to the box `b`. Two relations hold at once on a diagonal.
fn holds(a: &[f64; 4], relation: Relation, b: &[f64; 4]) -> bool {
    let offset = [0, 1].map(|i| (a[i] + a[i + 2]) / 2.0 - (b[i] + b[i + 2]) / 2.0);
    let sizes = [0, 1].map(|i| (a[i + 2] - a[i]).abs() + (b[i + 2] - b[i]).abs());
    let clear = [0, 1].map(|i| (offset[i].abs() - APART * sizes[i]).max(0.0).copysign(offset[i]));
    if clear.iter().all(|v| v.abs() < 1e-3) {
        return false;
    }
    // Over the length of the whole offset, not of the clear one: so says the public code.
    let [dx, dy] = clear.map(|v| v / offset[0].hypot(offset[1]));
    match relation {
        Relation::LeftOf => dx < -0.5,
        Relation::RightOf => dx > 0.5,
        Relation::Above => dy < -0.5,
        Relation::Below => dy > 0.5,
    }
}
