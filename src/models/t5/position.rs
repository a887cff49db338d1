//! T5's relative position bias: distances fall into buckets, exact for near tokens, logarithmic for far ones.

use crate::device::Tensor;
use crate::ops::embedding;

/// What is added to the scores of `n` tokens, `[heads, n, n]` (query, key), from `table` `[buckets, heads]`.
pub(super) fn bias(table: &Tensor, n: usize, max_distance: usize) -> Tensor {
    let (buckets, heads) = (table.dim(0), table.dim(1));
    let pairs = (0..n).flat_map(|query| (0..n).map(move |key| (query, key)));
    let ids: Vec<u32> = pairs.map(|(query, key)| bucket(query, key, buckets, max_distance) as u32).collect();
    embedding::by_column(&ids, table).reshape(&[heads, n, n])
}

/// The bucket of a key seen from a query (`T5Attention._relative_position_bucket`, bidirectional), computed in f32
/// like there, so that the same distances fall on the same side of a border.
pub(super) fn bucket(query: usize, key: usize, buckets: usize, max_distance: usize) -> usize {
    let half = buckets / 2;
    let exact = half / 2;
    let distance = query.abs_diff(key);
    let within = if distance < exact {
        distance
    } else {
        let range = (max_distance as f64 / exact as f64).ln() as f32;
        let steps = (distance as f32 / exact as f32).ln() / range * (half - exact) as f32;
        (exact + steps as usize).min(half - 1)
    };
    within + if key > query { half } else { 0 }
}
