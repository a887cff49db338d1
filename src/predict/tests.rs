use super::medium::Medium;
use super::*;
use crate::device::gpu::Chip;
use crate::device::{Device, Tensor};
use crate::models::network::Checkpointing;

const HIDDEN: u64 = 1536;
const BLOCKS: u64 = 24;
const DUAL: u64 = 13;
const RANK: u64 = 32;

fn chip(name: &str) -> &'static Chip {
    Chip::named(name).unwrap()
}

fn of(works: &Works, kinds: &[Kind]) -> u64 {
    works.iter().filter(|(done, _)| kinds.contains(&done.work.kind)).map(|(done, times)| done.work.flops * times).sum()
}

/// FLOPs of a forward by the shapes of the model (performance.md 4.2, 4.3): frozen layers, attention, low-rank additions.
fn forward_by_shapes(image: u64, text: u64) -> [u64; 3] {
    let square = HIDDEN * HIDDEN;
    let per_image_token = BLOCKS * 12 * square + DUAL * 4 * square + 2 * 64 * HIDDEN;
    // The last block has no use for the text that comes out of it.
    let per_text_token = BLOCKS * 3 * square + (BLOCKS - 1) * 9 * square + 4096 * HIDDEN;
    let modulations = (BLOCKS - DUAL) * 6 + DUAL * 9 + (BLOCKS - 1) * 6 + 2 + 2;
    let per_sample = modulations * square + 256 * HIDDEN + square + 2048 * HIDDEN + square;
    let linear = 2 * (image * per_image_token + text * per_text_token + per_sample);
    let attention = 4 * HIDDEN * (BLOCKS * (image + text).pow(2) + DUAL * image.pow(2));
    let adapter = 2 * RANK * 2 * HIDDEN;
    let lora = adapter * (image * 4 * BLOCKS + text * (4 * BLOCKS - 1));
    [linear, attention, lora]
}

#[test]
fn a_forward_has_the_flops_of_its_shapes_and_of_the_table() {
    let medium = Medium::on(chip("h100")).unwrap();
    // performance.md 4.3: side of the latent, text tokens, TF.
    for (side, text, table) in [(64, 154, 2.16), (64, 205, 2.25), (64, 333, 2.47), (128, 205, 11.00), (128, 333, 11.33)]
    {
        let image = (side / 2) * (side / 2);
        let [linear, attention, lora] = forward_by_shapes(image as u64, text as u64);
        for rows in [1, 3] {
            let works = medium.forward(rows, side, text);
            let rows = rows as u64;
            assert_eq!(of(&works, &[Kind::Attention]), rows * attention);
            assert_eq!(of(&works, &[Kind::Product]), rows * (linear + lora));
            let tera = flops(&works) / 1e12 / rows as f64;
            assert!((tera - table).abs() < 0.006, "{side} {text}: {tera} {table}");
        }
    }
}

#[test]
fn a_training_pass_has_the_flops_of_the_table() {
    let medium = Medium::on(chip("h100")).unwrap();
    // performance.md 4.3: with everything kept, and with one more forward.
    for (keep, table) in [(Checkpointing::None, 4.98), (Checkpointing::Block, 7.22)] {
        let works = medium.training(2, 64, 205, keep);
        let tera = flops(&works) / 2e12;
        // The table takes a whole backward; ours stops at the inputs of the first block and of what conditions it.
        assert!((0.97 * table..1.01 * table).contains(&tera), "{keep:?}: {tera} {table}");
        let [_, attention, _] = forward_by_shapes(1024, 205);
        let all = of(&works, &[Kind::AttentionGrad]) as f64 / (2.0 * 2.5 * attention as f64);
        // But for the queries of the last block's text.
        assert!((0.98..=1.0).contains(&all), "{all}");
    }
}

#[test]
fn waves_are_those_of_the_table_of_tiles() {
    let h100 = chip("h100");
    // cuda.md 4.2: shares of the waves, of 128x192 and 128x256.
    for (shape, narrow, wide) in [
        ([16384, 4608, 1536], 0.97, 0.97),
        ([16384, 1536, 1536], 0.97, 0.97),
        ([3280, 4608, 1536], 0.93, 0.87),
        ([3280, 1536, 6144], 0.78, 0.58),
        ([2048, 4608, 1536], 0.97, 0.73),
    ] {
        let [got_narrow, got_wide] = TILES.map(|columns| wave_efficiency(shape, columns, h100));
        let is_near = |got: f64, table: f64| (got - table).abs() < 0.02;
        assert!(is_near(got_narrow, narrow) && is_near(got_wide, wide), "{shape:?}: {got_narrow} {got_wide}");
    }
}

#[test]
fn nothing_is_predicted_to_be_faster_than_the_chip() {
    for chip in &crate::device::gpu::CHIPS {
        let medium = Medium::on(chip).unwrap();
        for works in [medium.forward(16, 64, 205), medium.training(16, 64, 205, Checkpointing::None)] {
            for done in works.keys() {
                let (t, work) = (time(done, chip), &done.work);
                assert!(t.work * chip.half() >= work.flops as f64, "{done:?}");
                assert!(t.work * chip.bandwidth() >= (work.read + work.written) as f64, "{done:?}");
            }
        }
    }
}

#[test]
fn a_second_piece_stands_for_all_that_come_after_it() {
    let device = Device::planned(chip("h100")).unwrap();
    let fills = |works: Works| works.iter().map(|(done, times)| (done.work.written, *times)).collect::<Vec<_>>();
    for (outer, inner) in [(1, 1), (2, 5), (7, 3), (72, 20)] {
        let (outer, inner) = (vec![(); outer], vec![(); inner]);
        for _ in device.rehearse(&outer) {
            for _ in device.rehearse(&inner) {
                Tensor::zeros(&device, &[64]);
            }
            device.once(|| Tensor::zeros(&device, &[32]));
            Tensor::zeros(&device, &[128]);
        }
        Tensor::zeros(&device, &[256]);
        let (outer, inner) = (outer.len() as u64, inner.len() as u64);
        let first = (128, outer.min(2));
        assert_eq!(fills(device.take_work()), [first, (256, outer * inner), (512, outer), (1024, 1)]);
    }
}

#[test]
fn the_bytes_of_an_op_that_says_nothing_are_those_of_its_tensors() {
    let device = Device::planned(chip("a100")).unwrap();
    let x = Tensor::scratch(&device, &[2, 3, 64]);
    let weight = Tensor::scratch(&device, &[64]);
    device.take_work();
    crate::ops::rms_norm::forward(&x, &weight, 1e-6);
    let works = device.take_work();
    let [(done, 1)] = works.iter().collect::<Vec<_>>()[..] else { panic!("{works:?}") };
    assert_eq!((done.op, done.work), ("engine::ops::rms_norm::forward", Work::stream(4 * (384 + 64), 4 * 384)));
    assert_eq!((done.direct, done.replayed, done.kernel.as_str()), (1, 0, "rms_norm_forward_1_f32"));
}
