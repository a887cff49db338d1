//! Learned or tabulated positions: rows of a table added to tokens.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;
use crate::device::work::Work;

/// The tokens of each sample of `x` `[b, n, d]` are `starts.len()` lines of equal length; line `i` gets the rows of
/// `table` `[.., d]` from `starts[i]` on added.
pub fn add(x: &mut Tensor, table: &Tensor, starts: &[usize]) {
    let (n, rows) = (x.dim(1), table.len() / x.dim(2));
    assert!(n.is_multiple_of(starts.len()), "position: {n} tokens in {} lines", starts.len());
    let length = n / starts.len();
    assert!(starts.iter().all(|s| s + length <= rows), "position: {length} rows from {starts:?} of {rows}");
    dispatch!(x, add(x, table, starts), [Work::stream(2 * x.bytes(), x.bytes())]);
}
