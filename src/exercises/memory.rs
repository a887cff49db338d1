use std::fmt::Write;

use super::counts::RENEW;
use super::*;
use crate::device::gpu;

/// A kernel that memory bounds: what it is run on, and the bytes that each token (pixel) must come and go with.
struct Bound {
    name: &'static str,
    tokens: usize,
    floor: usize,
    exercise: Exercise,
}

/// What an H100 SXM issues of instructions, four of a warp per clock and processor, in the time in which it moves a byte: 132
/// processors at 1.755 GHz, 3.35 TB/s.
const INSTRUCTIONS_PER_BYTE: f64 = 4.0 * 132.0 * 1.755e9 / 3.35e12;

/// Of SD3.5 Medium, T5, CLIP-L and the VAE's finest level, in bf16.
fn all() -> Vec<Bound> {
    const TOKENS: usize = 64;
    const D: usize = 1536;
    // `passes`: how often a token's row is read or written.
    let rows = |name, width: usize, passes: usize, run: fn(&Device, [&Tensor; 3], &Tensor)| {
        let all = [1, 2, 3].map(|seed| some(&[1, TOKENS, width], seed, Bf16));
        let vector = random(&[width], 4);
        let exercise = Exercise::new(name, move |device| {
            let [a, b, c] = all.each_ref().map(|t| t.to(device));
            run(device, [&a, &b, &c], &vector.to(device));
            Vec::new()
        });
        Bound { name, tokens: TOKENS, floor: 2 * passes * width, exercise }
    };
    fn modulation(device: &Device) -> Tensor {
        some(&[1, 6 * D], 5, Bf16).to(device)
    }
    let pixels = [1, 64, 64, 128];
    vec![
        rows("adaLN", D, 2, |device, [x, ..], _| {
            let m = &modulation(device);
            adaln::forward(x, Chunk { modulation: m, index: 0 }, Chunk { modulation: m, index: 1 });
        }),
        rows("adaLN backward, added", D, 4, |device, [x, dy, dx], _| {
            let m = &modulation(device);
            adaln::backward(&mut copy::owned(dx), dy, x, Chunk { modulation: m, index: 1 });
        }),
        rows("the same, and the next gate's product", D, 5, |device, [x, dy, dx], _| {
            let m = &modulation(device);
            let (scale, gate) = (Chunk { modulation: m, index: 1 }, Chunk { modulation: m, index: 2 });
            adaln::backward_gated(&mut copy::owned(dx), dy, x, scale, gate);
        }),
        rows("gate backward", D, 2, |device, [dx, ..], _| {
            gate::backward(dx, Chunk { modulation: &modulation(device), index: 2 });
        }),
        rows("RMS norm of 24 heads of 64, in place", D, 2, |_, [x, ..], w| {
            rms_norm::forward_in_place(&mut copy::owned(x), &w.view(0, &[64]), 1e-6, None);
        }),
        rows("its backward", D, 3, |_, [x, dy, _], w| {
            let w = w.view(0, &[64]);
            let inverse = Tensor::zeros(&x.device(), rms_norm::room_for_inverse(x, &w).shape());
            rms_norm::backward(&mut copy::owned(dy), x, &w, &inverse);
        }),
        rows("RMS norm of T5", 4096, 2, |_, [x, ..], w| drop(rms_norm::forward(x, w, 1e-6))),
        rows("layer norm of CLIP-L", 768, 2, |_, [x, ..], w| drop(layer_norm::forward(x, w, w, 1e-5))),
        rows("GELU (tanh)", 4 * D, 2, |_, [x, ..], _| {
            activation::forward(&mut copy::owned(x), Activation::GeluTanh);
        }),
        rows("its backward", 4 * D, 3, |_, [x, dy, _], _| activation::gelu_tanh_backward(&mut copy::owned(dy), x)),
        rows("product", 4 * D, 3, |_, [x, y, _], _| activation::multiply(&mut copy::owned(x), y)),
        Bound {
            name: "group norm and SiLU of 128 channels",
            tokens: 64 * 64,
            floor: 3 * 2 * 128,
            exercise: normalise_groups(pixels, 32, Bf16),
        },
    ]
}

/// Bytes asked for against those that must move, and instructions against those that there is time for.
#[test]
fn kernels_that_memory_bounds_take_what_the_committed_table_says() {
    let mut table = format!(
        "# Memory-bound kernels, as counted by the interpreter\n\n\
         Made by `{RENEW}=1 cargo test --release --lib -- exercises::memory`. Nothing here was measured on a GPU.\n\n\
         Per token (pixel), in bf16. Floor: what is read and written of it, each once. Asked for: by all loads and stores; what \
         exceeds the floor is the same for all tokens (modulation, weights, statistics) and should come from the first-level cache. \
         Sectors: of 32 bytes, touched by a warp at a time. Issue: the kernel's instructions against those that an H100 (132 \
         processors, four a clock, 1.755 GHz) has time for while 3.35 TB/s move the floor; below 1, memory is the bound.\n\n\
         | kernel | floor, B | asked for, B | in sectors, B | instructions of a warp | issue | bank conflicts |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for Bound { name, tokens, floor, exercise } in all() {
        let vm = Vm::new(gpu::HOPPER, ptxvm::Options { check: false, ..Default::default() });
        let of = vm.counts();
        exercise.bits(vm).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut sum = ptxvm::Stats::default();
        of.lock().unwrap().values().for_each(|stats| sum.add(stats));
        let per = |n: u64| n as f64 / tokens as f64;
        let issue = per(sum.instructions) / (INSTRUCTIONS_PER_BYTE * floor as f64);
        writeln!(
            table,
            "| {name} | {floor} | {:.0} | {:.0} | {:.0} | {issue:.2} | {} |",
            per(sum.global_read + sum.global_written),
            per(32 * sum.global_sectors),
            per(sum.instructions),
            sum.bank_conflicts
        )
        .expect("text");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/2026-11-28-memory-bound.md");
    if std::env::var_os(RENEW).is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let known = std::fs::read_to_string(path).unwrap_or_default();
    assert!(known == table, "{path} is not what kernels take; if that is meant, run this with {RENEW}=1:\n{table}");
}
