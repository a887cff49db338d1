//! What `train --dry-run` says of a run on a chip that is not there.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{by, flops, launches, total};
use crate::config::Resolved;
use crate::device::gpu::Chip;
use crate::device::work::{Kind, Works};

/// What an epoch is predicted to take on one GPU; rewards and files on the processor are not counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The GPU.
    pub chip: &'static str,
    /// Time of an epoch.
    pub seconds_per_epoch: f64,
    /// Sampled, judged and trained on.
    pub images_per_second: f64,
    /// Price of an epoch.
    pub usd_per_epoch: f64,
    /// What was said an hour costs.
    pub usd_per_hour: f64,
    /// One row through the transformer when images are sampled.
    pub rollout_ms_per_row: f64,
    /// Forward and backward of one training point.
    pub update_ms_per_point: f64,
    /// Seconds of each phase of an epoch.
    pub phase_seconds: BTreeMap<&'static str, f64>,
    /// Of the time, what products of matrices, attention, convolutions and all else take.
    pub shares: Shares,
    /// Floating-point operations of products in an epoch.
    pub flops: f64,
    /// Of what the GPU's tensor cores could do in that time.
    pub share_of_peak: f64,
    /// Kernels launched in an epoch.
    pub launches: u64,
}

/// Shares of the time, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Shares {
    pub products: f64,
    pub attention: f64,
    pub convolutions: f64,
    pub rest: f64,
}

impl Prediction {
    /// That of an epoch of `config` whose work is `works`.
    pub fn of(works: &Works, config: &Resolved, chip: &Chip, usd_per_hour: f64) -> Self {
        let (raw, images) = (&config.raw, config.images as f64);
        let seconds = total(works, chip);
        let phases = by(works, chip, |done| done.phase);
        let of = |phase: &str| phases.get(phase).copied().unwrap_or(0.0);
        let branches = if raw.rollout.guidance_scale > 1.0 { 2.0 } else { 1.0 };
        let rows = images * raw.rollout.num_inference_steps as f64 * branches;
        let kinds = by(works, chip, |done| done.work.kind);
        let share = |of: &[Kind]| of.iter().filter_map(|k| kinds.get(k)).sum::<f64>() / seconds;
        Self {
            chip: chip.title,
            seconds_per_epoch: seconds,
            images_per_second: images / seconds,
            usd_per_epoch: seconds / 3600.0 * usd_per_hour,
            usd_per_hour,
            rollout_ms_per_row: 1e3 * of("rollout") / rows,
            update_ms_per_point: 1e3 * of("update") / config.points as f64,
            shares: Shares {
                products: share(&[Kind::Product, Kind::RowSum]),
                attention: share(&[Kind::Attention, Kind::AttentionGrad]),
                convolutions: share(&[Kind::Convolution]),
                rest: share(&[Kind::Stream]),
            },
            flops: flops(works),
            share_of_peak: flops(works) / seconds / chip.half(),
            launches: launches(works),
            phase_seconds: phases.into_iter().filter(|(_, s)| *s > 0.0).collect(),
        }
    }
}

/// A line for each number, marked as predicted.
impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "prediction for one {}: nothing here was measured", self.chip)?;
        let mut line = |what: &str, value: String| writeln!(f, "  predicted {what:<28} {value}");
        line("time per epoch", format!("{:.1} s", self.seconds_per_epoch))?;
        line("images per second", format!("{:.2}", self.images_per_second))?;
        line("cost per epoch", format!("{:.3} USD at {} USD per GPU hour", self.usd_per_epoch, self.usd_per_hour))?;
        line("rollout forward per row", format!("{:.3} ms", self.rollout_ms_per_row))?;
        line("update per training point", format!("{:.3} ms", self.update_ms_per_point))?;
        let mut ordered: Vec<_> = self.phase_seconds.iter().collect();
        ordered.sort_by(|a, b| b.1.total_cmp(a.1));
        for (phase, s) in ordered {
            line(&format!("  {phase}"), format!("{s:.2} s, {:.1} %", 100.0 * s / self.seconds_per_epoch))?;
        }
        let [products, attention, convolutions, rest] =
            [self.shares.products, self.shares.attention, self.shares.convolutions, self.shares.rest]
                .map(|s| 100.0 * s);
        line(
            "shares",
            format!(
                "products {products:.0} %, attention {attention:.0} %, convolutions {convolutions:.0} %, the rest {rest:.0} %"
            ),
        )?;
        line(
            "products",
            format!(
                "{:.1} PFLOP, {:.0} TFLOP/s, {:.0} % of peak",
                self.flops / 1e15,
                self.flops / self.seconds_per_epoch / 1e12,
                100.0 * self.share_of_peak
            ),
        )?;
        line("launches", self.launches.to_string())?;
        writeln!(f, "  not counted: rewards and files on the processor; assumptions: README, \"Predictions\"")
    }
}
