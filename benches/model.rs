//! What Stable Diffusion 3.5 Medium is predicted to take on chips that are not at hand: kernels, tiles, passes, an epoch. Measures
//! nothing.
//!
//!     cargo bench --bench model [-- CHIP] > benches/results/DATE-hopper-model.md

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use engine::config::{self, Job};
use engine::device::Device;
use engine::device::gpu::{CHIPS, Chip};
use engine::device::work::{Done, Kind, Works};
use engine::models::network::Checkpointing;
use engine::predict::medium::Medium;
use engine::predict::{TABLE, TILES, by, flops, launches, product, report::Prediction, time, total, wave_efficiency};
use engine::train::{plan::MemoryPlan, setup};

/// 512x512 pixels, CLIP's 77 tokens and 128 of T5, and rows of a batch.
const SIDE: usize = 64;
const TEXT: usize = 205;
const ROWS: usize = 16;
/// Of an epoch.
const IMAGES: f64 = 1152.0;
/// performance.md 4.1: what cuBLAS reaches, and its floors are for.
const FLOOR: f64 = 790e12;

fn main() -> Result<()> {
    let name = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_else(|| "h100".into());
    let chip = Chip::named(&name).with_context(|| format!("no chip '{name}'"))?;
    println!("# Prediction: Stable Diffusion 3.5 Medium on {}\n", chip.title);
    println!(
        "**Every number here is predicted, not measured.** No such GPU was there. 2026-11-28, `cargo bench --bench model -- {name}`;"
    );
    println!("launches and instructions are those of the kernels as committed beside this file.\n");
    assumptions();
    let medium = Medium::on(chip)?;
    let forward = medium.forward(ROWS, SIDE, TEXT);
    let training = medium.training(ROWS, SIDE, TEXT, Checkpointing::None);
    let epochs = [10, 20].map(|steps| epoch(chip, steps));
    let [ten, twenty] = epochs;
    let (ten, twenty) = (ten?, twenty?);
    passes(chip, &forward, &training, &medium, [&ten, &twenty]);
    kernels("A forward of 16 rows", &forward, chip);
    kernels("Forward and backward of 16 trained rows", &training, chip);
    kernels("VAE decode of 1152 images", &phase(&ten.0, "decode"), chip);
    kernels("PickScore of 1152 images", &phase(&ten.0, "reward"), chip);
    tiles(&training, chip);
    println!("## RAM epoch of configs/ram_pickscore.toml, 20 steps with guidance (predicted)\n\n```\n{}```", twenty.1);
    chips()
}

/// The same epoch wherever there are kernels for.
fn chips() -> Result<()> {
    println!("\n## The same epoch on other chips (predicted)\n\n| chip | s | images/s | PFLOP |\n|---|---|---|---|");
    for chip in &CHIPS {
        let (works, _) = epoch(chip, 20)?;
        let seconds = total(&works, chip);
        println!("| {} | {seconds:.0} | {:.2} | {:.1} |", chip.title, IMAGES / seconds, flops(&works) / 1e15);
    }
    Ok(())
}

fn assumptions() {
    println!("## Assumptions\n\n| what | value | why |\n|---|---|---|");
    for a in TABLE {
        println!("| {} | {} {} | {} |", a.name, a.value, a.unit, a.why);
    }
    println!(
        "\nA pass takes the longest of arithmetic, memory and instructions, and its launches; nothing overlaps another.\n"
    );
}

/// The work of a RAM epoch in so many steps, and what is said of it.
fn epoch(chip: &Chip, steps: usize) -> Result<(Works, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/ram_pickscore.toml");
    let mut raw = config::load(&path, &[format!("rollout.num_inference_steps={steps}")])?;
    setup::stand_in(&mut raw);
    let mut planned = setup::check(raw, Job::Train)?;
    let device = Device::planned(chip)?;
    let plan = MemoryPlan::fitting(&mut planned, &device)?;
    let said = Prediction::of(&plan.epoch, &planned.config, chip, 2.5).to_string();
    Ok((plan.epoch, said))
}

/// Whole passes beside the targets of performance.md 4.7 and the floors of 4.3 and 4.4.
fn passes(chip: &Chip, forward: &Works, training: &Works, medium: &Medium, [ten, twenty]: [&(Works, String); 2]) {
    println!("## Whole passes (predicted)\n");
    println!(
        "512x512 pixels, 205 text tokens, batch 16. Targets and floors: performance.md 4.3, 4.4, 4.7, which are for an H200.\n"
    );
    println!("| pass | predicted | target | floor | TFLOP | launches |\n|---|---|---|---|---|---|");
    let row = |what: &str, works: &Works, per: f64, unit: &str, scale: f64, target: &str, floor: &str| {
        let (t, tera) = (total(works, chip) / per * scale, flops(works) / per / 1e12);
        println!("| {what} | {t:.2} {unit} | {target} | {floor} | {tera:.2} | {} |", launches(works));
    };
    let rows = ROWS as f64;
    row("forward, per row", forward, rows, "ms", 1e3, "3.7 ms", "3.21 ms");
    row("forward and backward, per row", training, rows, "ms", 1e3, "8.8 ms", "7.75 ms");
    let block = medium.training(ROWS, SIDE, TEXT, Checkpointing::Block);
    row("the same, checkpointing block", &block, rows, "ms", 1e3, "-", "10.96 ms");
    row("VAE decode, per image", &phase(&ten.0, "decode"), IMAGES, "ms", 1e3, "4.5 ms", "3.2 ms");
    row("PickScore, per image", &phase(&ten.0, "reward"), IMAGES, "ms", 1e3, "0.7 ms", "0.42 ms");
    row("RAM epoch, 10 steps", &ten.0, 1.0, "s", 1.0, "-", "180 s at 790 flat, no recompute");
    row("RAM epoch, 20 steps", &twenty.0, 1.0, "s", 1.0, "-", "246 s at 790 flat, no recompute");
    println!();
}

/// The part of the work that is of one phase.
fn phase(works: &Works, name: &str) -> Works {
    works.iter().filter(|(done, _)| done.phase == name).map(|(done, n)| (done.clone(), *n)).collect()
}

/// What ops take, the longest first.
fn kernels(title: &str, works: &Works, chip: &Chip) {
    println!("## {title}, by op (predicted)\n");
    println!(
        "| op | calls | launches | GFLOP | GB | ms | share | TFLOP/s | limited by |\n|---|---|---|---|---|---|---|---|---|"
    );
    let all = total(works, chip);
    let mut ops: Vec<(&str, f64)> = by(works, chip, |done| done.op).into_iter().collect();
    ops.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (op, seconds) in ops {
        let of: Vec<(&Done, f64)> = works.iter().filter(|(d, _)| d.op == op).map(|(d, n)| (d, *n as f64)).collect();
        let sum = |f: &dyn Fn(&Done) -> f64| of.iter().map(|(d, n)| f(d) * n).sum::<f64>();
        let mut limits: BTreeMap<&str, f64> = BTreeMap::new();
        for (done, n) in &of {
            let t = time(done, chip);
            *limits.entry(t.limit.name()).or_default() += t.work * n;
            *limits.entry("launches").or_default() += t.launches * n;
        }
        let limit = limits.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |l| l.0);
        let (work, moved) = (sum(&|d| d.work.flops as f64), sum(&|d| (d.work.read + d.work.written) as f64));
        println!(
            "| {} | {} | {} | {:.0} | {:.2} | {:.3} | {:.1} % | {:.0} | {limit} |",
            op.trim_start_matches("engine::ops::"),
            sum(&|d| if d.direct + d.replayed + d.waits > 0 { 1.0 } else { 0.0 }),
            sum(&|d| (d.direct + d.replayed) as f64),
            work / 1e9,
            moved / 1e9,
            seconds * 1e3,
            100.0 * seconds / all,
            work / seconds / 1e12,
        );
    }
    println!(
        "| all | | {} | {:.0} | | {:.3} | | {:.0} | |\n",
        launches(works),
        flops(works) / 1e9,
        all * 1e3,
        flops(works) / all / 1e12
    );
}

/// Which tile is predicted to be the better one for every product.
fn tiles(works: &Works, chip: &Chip) {
    println!("## Tiles of products (predicted)\n");
    println!(
        "The share of processors at work over all waves, and µs, for tiles of 128 rows. Products of one launch are one: 19664"
    );
    println!(
        "rows are those of image and text, 4608 columns queries, keys and values. Predictions take the better; the launcher"
    );
    println!(
        "chooses by the columns of a layer alone (src/ops/linear/cuda/hopper.rs), as a row must have the same bits in every batch.\n"
    );
    println!(
        "| M x N x K | calls | at 790 | 128x192 | µs | 128x256 | µs | better |\n|---|---|---|---|---|---|---|---|"
    );
    let mut shapes: BTreeMap<[usize; 3], (&Done, u64)> = BTreeMap::new();
    for (done, n) in works.iter().filter(|(d, _)| d.work.kind == Kind::Product && d.work.shape[0] > ROWS) {
        shapes.entry(done.work.shape).or_insert((done, 0)).1 += n;
    }
    for (shape, (done, calls)) in shapes.into_iter().rev() {
        let [narrow, wide] =
            TILES.map(|columns| (wave_efficiency(shape, columns, chip), 1e6 * product(&done.work, columns, chip)));
        let better = match narrow.1.total_cmp(&wide.1) {
            std::cmp::Ordering::Less => "128x192",
            std::cmp::Ordering::Equal => "either",
            std::cmp::Ordering::Greater => "128x256",
        };
        let [m, n, k] = shape;
        println!(
            "| {m} x {n} x {k} | {calls} | {:.0} | {:.2} | {:.0} | {:.2} | {:.0} | {better} |",
            1e6 * done.work.flops as f64 / FLOOR,
            narrow.0,
            narrow.1,
            wide.0,
            wide.1,
        );
    }
    println!();
}
