//! How long work would take on a chip that is not at hand: predicted from FLOPs, exponentials, bytes, instructions and
//! launches with the [assumptions](TABLE) that are written here, never measured.

mod assumptions;
mod counts;
pub mod medium;
pub mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::device::DType;
use crate::device::gpu::{Chip, EXPS_PER_CLOCK, HOPPER};
use crate::device::work::{Done, Kind, Work, Works};

use assumptions as assume;
pub use assumptions::{Assumption, TABLE};

/// What a time is the time of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// Products, and the softmax between them.
    Arithmetic,
    /// Bytes of global memory.
    Memory,
    /// Instructions that are neither.
    Instructions,
}

impl Limit {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arithmetic => "arithmetic",
            Self::Memory => "memory",
            Self::Instructions => "instructions",
        }
    }
}

/// The columns of the tile of products, in the order in which the better is looked for.
pub const TILES: [usize; 2] = [192, 256];
/// The rows of every tile.
const ROWS: usize = 128;

/// A predicted time.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// Seconds on the device.
    pub work: f64,
    /// Seconds between launches and for answers.
    pub launches: f64,
    /// What `work` is the time of.
    pub limit: Limit,
}

impl Time {
    /// Both together.
    pub fn seconds(&self) -> f64 {
        self.work + self.launches
    }
}

/// The time that something takes once.
pub fn time(done: &Done, chip: &Chip) -> Time {
    let work = &done.work;
    let memory = (work.read + work.written) as f64 / (chip.bandwidth() * assume::BANDWIDTH.value);
    let limits = [
        (arithmetic(done, chip), Limit::Arithmetic),
        (memory, Limit::Memory),
        (instructions(done, chip), Limit::Instructions),
    ];
    let (work, limit) = limits.into_iter().fold((0.0, Limit::Memory), |most, of| if of.0 > most.0 { of } else { most });
    let launches = done.direct as f64 * assume::LAUNCH.value
        + done.replayed as f64 * assume::GRAPH_NODE.value
        + done.waits as f64 * assume::ANSWER.value;
    Time { work, launches: launches * 1e-6, limit }
}

/// The time of everything in `works`, by `key`.
pub fn by<K: Ord>(works: &Works, chip: &Chip, key: impl Fn(&Done) -> K) -> BTreeMap<K, f64> {
    let mut sums = BTreeMap::new();
    for (done, times) in works {
        *sums.entry(key(done)).or_insert(0.0) += time(done, chip).seconds() * *times as f64;
    }
    sums
}

/// The time of everything in `works`.
pub fn total(works: &Works, chip: &Chip) -> f64 {
    by(works, chip, |_| ()).into_values().sum()
}

/// FLOPs of products in `works`.
pub fn flops(works: &Works) -> f64 {
    works.iter().map(|(done, times)| done.work.flops as f64 * *times as f64).sum()
}

/// FLOPs of products in those of `works` that are the model's: forward and backward of the phases `rollout` and `update`. What
/// is done again is not: the scores that the gradient of attention starts from; nor are blocks that are recomputed, if
/// `works` are those without [checkpointing](crate::models::network::Checkpointing).
pub fn model_flops(works: &Works) -> u64 {
    let of = |(done, times): (&Done, &u64)| {
        let flops = match done.work.kind {
            // One product of five.
            Kind::AttentionGrad => done.work.flops / 5 * 4,
            _ => done.work.flops,
        };
        flops * times
    };
    works.iter().filter(|(done, _)| ["rollout", "update"].contains(&done.phase)).map(of).sum()
}

/// Launches in `works`.
pub fn launches(works: &Works) -> u64 {
    works.iter().map(|(done, times)| (done.direct + done.replayed) * times).sum()
}

/// Seconds of products.
fn arithmetic(done: &Done, chip: &Chip) -> f64 {
    let work = &done.work;
    if work.flops == 0 {
        return 0.0;
    }
    // Wide heads have no kernel in half precision.
    let is_attention = matches!(work.kind, Kind::Attention | Kind::AttentionGrad);
    if work.dtype == DType::F32 || is_attention && done.kernel.contains("_f32_") {
        return work.flops as f64 / (chip.single() * assume::SINGLE.value);
    }
    match work.kind {
        Kind::Stream => 0.0,
        Kind::Product => TILES.map(|columns| product(work, columns, chip)).into_iter().fold(f64::INFINITY, f64::min),
        Kind::Convolution => in_tiles(work, ROWS, chip) / assume::CONVOLUTION.value,
        Kind::RowSum => work.flops as f64 / chip.half() / assume::ROW_SUM.value,
        Kind::Attention => attention(work, chip, [1.0, 1.0, assume::SOFTMAX.value], 192),
        Kind::AttentionGrad => attention(work, chip, [7.0 / 5.0, 2.0, assume::SOFTMAX_GRAD.value], ROWS),
    }
}

/// Seconds of a product in tiles of so many columns, as a kernel does it that has a block on every processor: whole waves.
pub fn product(work: &Work, columns: usize, chip: &Chip) -> f64 {
    // Narrow products have narrow tiles.
    let columns = columns.min(work.shape[1].next_multiple_of(32));
    let share = if chip.capability == HOPPER { assume::PRODUCT.value } else { assume::PRODUCT_PORTABLE.value };
    in_tiles(work, columns, chip) / share
}

/// The share of processors that are at work over all waves.
pub fn wave_efficiency([m, n, _]: [usize; 3], columns: usize, chip: &Chip) -> f64 {
    let [tiles, whole] = [m.div_ceil(ROWS) * n.div_ceil(columns), chip.processors as usize];
    tiles as f64 / (tiles.div_ceil(whole) * whole) as f64
}

/// Seconds at the peak, of tiles that are done one after another on every processor.
fn in_tiles(work: &Work, columns: usize, chip: &Chip) -> f64 {
    let [m, n, k] = work.shape;
    let waves = (m.div_ceil(ROWS) * n.div_ceil(columns)).div_ceil(chip.processors as usize);
    // What low-rank additions make of it.
    let more = work.flops as f64 / (2 * m * n * k) as f64;
    let tile = (2 * ROWS * columns * k) as f64 * more;
    waves as f64 * tile * f64::from(chip.processors) / chip.half()
}

/// Seconds of an attention whose softmax and products do not overlap, in whole waves of `tile` queries; `executed`: products
/// and exponentials per one of the formula, and other operations per score.
fn attention(work: &Work, chip: &Chip, [products, exps, others]: [f64; 3], tile: usize) -> f64 {
    let clocks = products * work.flops as f64 / chip.half_per_clock
        + exps * work.exps as f64 / EXPS_PER_CLOCK
        + others * work.exps as f64 / chip.lanes;
    let [sequences, tokens, _] = work.shape;
    let (blocks, whole) = (sequences * tokens.div_ceil(tile), chip.processors as usize);
    let idle = (blocks.div_ceil(whole) * whole) as f64 / blocks as f64;
    clocks / f64::from(chip.processors) / chip.clock() * idle
}

/// Seconds of the instructions of a kernel that streams.
fn instructions(done: &Done, chip: &Chip) -> f64 {
    if done.work.kind != Kind::Stream {
        return 0.0;
    }
    let bytes = (done.work.read + done.work.written) as f64;
    let per_second = 4.0 * f64::from(chip.processors) * chip.clock() * assume::ISSUE.value;
    counts::per_byte(&done.kernel).unwrap_or(0.0) * bytes / per_second
}
