//! What `train --dry-run` says of a run on a chip that is not there.

use std::fmt::Write;

use super::{by, flops, launches, total};
use crate::config::Resolved;
use crate::device::gpu::Chip;
use crate::device::work::{Kind, Works};

/// The lines about an epoch of `config` whose work is `works`, each marked as predicted.
pub fn epoch(works: &Works, config: &Resolved, chip: &Chip, usd_per_hour: f64) -> String {
    let (raw, images) = (&config.raw, config.images as f64);
    let seconds = total(works, chip);
    let phases = by(works, chip, |done| done.phase);
    let of = |phase: &str| phases.get(phase).copied().unwrap_or(0.0);
    let branches = if raw.rollout.guidance_scale > 1.0 { 2.0 } else { 1.0 };
    let rows = images * raw.rollout.num_inference_steps as f64 * branches;
    let mut lines = vec![
        ("time per epoch".to_string(), format!("{seconds:.1} s")),
        ("images per second".into(), format!("{:.2}", images / seconds)),
        (
            "cost per epoch".into(),
            format!("{:.3} USD at {usd_per_hour} USD per GPU hour", seconds / 3600.0 * usd_per_hour),
        ),
        ("rollout forward per row".into(), format!("{:.3} ms", 1e3 * of("rollout") / rows)),
        ("update per training point".into(), format!("{:.3} ms", 1e3 * of("update") / config.points as f64)),
    ];
    let mut ordered: Vec<_> = phases.iter().filter(|(_, s)| **s > 0.0).collect();
    ordered.sort_by(|a, b| b.1.total_cmp(a.1));
    for (phase, s) in ordered {
        lines.push((format!("  {phase}"), format!("{s:.2} s, {:.1} %", 100.0 * s / seconds)));
    }
    let kinds = by(works, chip, |done| done.work.kind);
    let share = |of: &[Kind]| 100.0 * of.iter().filter_map(|k| kinds.get(k)).sum::<f64>() / seconds;
    lines.push((
        "shares".into(),
        format!(
            "products {:.0} %, attention {:.0} %, convolutions {:.0} %, the rest {:.0} %",
            share(&[Kind::Product, Kind::RowSum]),
            share(&[Kind::Attention, Kind::AttentionGrad]),
            share(&[Kind::Convolution]),
            share(&[Kind::Stream]),
        ),
    ));
    let rate = flops(works) / seconds;
    lines.push((
        "products".into(),
        format!(
            "{:.1} PFLOP, {:.0} TFLOP/s, {:.0} % of peak",
            flops(works) / 1e15,
            rate / 1e12,
            100.0 * rate / chip.half()
        ),
    ));
    lines.push(("launches".into(), launches(works).to_string()));
    let mut out = format!("prediction for one {}: nothing here was measured\n", chip.title);
    for (what, value) in lines {
        writeln!(out, "  predicted {what:<28} {value}").expect("text");
    }
    out + "  not counted: rewards and files on the processor; assumptions: README, \"Predictions\"\n"
}
