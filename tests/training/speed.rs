//! What a run says of its speed is what it computes.

use std::path::Path;

use engine::config::{self, Job};
use engine::device::Device;
use engine::models::mmdit::Config;
use engine::train::setup::{Planned, check};
use engine::train::speed::Speed;

use super::{assert_success, train, write_config};

fn planned(config: &Path, changes: &[&str]) -> Planned {
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    check(config::load(config, &changes).unwrap(), Job::Train).unwrap()
}

/// Multiply-adds of a row in a transformer, by its shapes: of its frozen layers and attentions, of low-rank additions, of the
/// backward.
fn by_shapes(c: &Config, image: usize, text: usize, rank: usize) -> [usize; 3] {
    let (d, last) = (c.hidden(), c.num_layers - 1);
    let (square, patch, all) = (d * d, c.in_channels * c.patch_size.pow(2), image + text);
    let (mut frozen, mut added, mut back) = (0, 0, 0);
    // Patches, time, both texts, the last modulation and projection.
    frozen += image * patch * d + 256 * d + square + c.pooled_projection_dim * d + square;
    frozen += text * c.joint_attention_dim * d + 2 * square + image * d * patch;
    back += image * d * patch;
    for block in 0..=last {
        let (is_first, is_last) = (block == 0, block == last);
        let dual = usize::from(c.dual_attention_layers.contains(&block));
        // Modulations; attention's four layers and the MLP's, which are worth eight.
        frozen += (6 + 3 * dual + if is_last { 2 } else { 6 }) * square;
        frozen += image * (12 + 4 * dual) * square + text * if is_last { 3 } else { 12 } * square;
        frozen += 2 * d * (all * all + dual * image * image);
        added += 2 * rank * d * (4 * image + if is_last { 3 } else { 4 } * text);

        // The first block's input needs no gradient; what the last makes of the text is not read, so nor are its queries.
        let (inputs, text_inputs) = if is_first { (0, 0) } else { (3, if is_last { 2 } else { 3 }) };
        let text_outputs = if is_last { 0 } else { 1 };
        back += image * (9 + inputs + dual * (1 + inputs)) * square + text * (9 * text_outputs + text_inputs) * square;
        // Four products as large as the two of the forward.
        back += 4 * d * (all * if is_last { image } else { all } + dual * image * image);
        // Of each adapted layer: dy·B, x·A again, the gradients of A and B; and that of x, if it is wanted.
        let layers = 4 * image + if is_last { 2 } else { 4 } * text;
        back += rank * d * (4 * layers + image * (1 + inputs) + text * (text_outputs + text_inputs));
    }
    [frozen, added, back]
}

#[test]
fn the_flops_of_an_epoch_are_those_of_its_shapes_whatever_is_recomputed() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let planned_here = planned(&config, &[]);
    let (raw, model) = (&planned_here.config.raw, planned_here.model());
    let c = Config::load(model.component("transformer").unwrap()).unwrap();
    let image = (planned_here.config.latent / c.patch_size).pow(2);
    // CLIP's tokens, and those of the T5 that is not there.
    let text = 16 + raw.prompts.max_sequence_length;
    let [frozen, added, back] = by_shapes(&c, image, text, raw.lora.rank);
    // With guidance, every step takes two rows.
    let rows = 6 * raw.rollout.num_inference_steps * 2;
    let points = 6 * raw.ram.as_ref().unwrap().num_noisings;
    // The trained policy, the reference without an adapter, the lagged one; at one point of the rollout the policy that sampled, the
    // trained one and the reference.
    let forward = rows * (frozen + added) + points * (3 * frozen + 2 * added) + 3 * frozen + 2 * added;
    let want = 2 * (forward + points * back) as u64;
    for keep in ["none", "selective", "block"] {
        let key = format!("train.activation_checkpointing={keep}");
        let counted = Speed::of(&planned(&config, &[&key]), &Device::Cpu).unwrap();
        assert_eq!((counted.flops, counted.peak), (want, None), "{keep}");
    }

    let run = dir.path().join("run");
    let output = train(&config, &run, &["--verbose", "--set", "num_epochs=1", "eval.num_prompts=1"]);
    assert_success(&output);
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let line = lines.into_iter().find(|l| l["loss"].is_number()).unwrap();
    assert_eq!(line["model_flops"], want);
    let of = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key}: {line}"));
    let rate = of("model_flops_per_second");
    assert!((rate * of("total_seconds") / want as f64 - 1.0).abs() < 1e-9, "{line}");
    assert!((of("mfu") * of("peak_flops_per_second") / rate - 1.0).abs() < 1e-9, "{line}");
    assert!(of("peak_memory_bytes") >= of("arena_peak_bytes"), "{line}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let epoch = printed.lines().find(|l| l.starts_with("epoch 1/1")).unwrap();
    let words = ["reward ", "ETA ", " img/s", "loss ", "MFU ", "mem ", "FLOP/s", "rollout ", "update "];
    assert!(words.iter().all(|word| epoch.contains(word)), "{epoch}");
}
