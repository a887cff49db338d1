//! What the tests of all ops share: random inputs, and comparison with f64.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::noise;
use crate::device::gpu::{HOPPER, PORTABLE};
use crate::device::philox::{Key, Purpose};
use crate::device::{DType, Device, Tensor, with_threads};

/// Gives all random inputs other numbers: for machines whose results have not been seen before.
const SEED: &str = "ENGINE_TEST_SEED";
/// Where the repository is, if not where the tests were built.
const ROOT: &str = "ENGINE_TEST_ROOT";

/// A file of tests/fixtures.
pub fn fixture(name: &str) -> PathBuf {
    let root = std::env::var_os(ROOT).unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join("tests/fixtures").join(name)
}

/// A tensor of standard normal numbers.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let other = std::env::var(SEED).map_or(0, |s| s.parse::<u32>().expect(SEED));
    let key = Key::new(seed ^ u64::from(other) << 32, Purpose::ForwardNoise);
    noise::normal(&Device::Cpu, &[key], &[1, shape.iter().product()]).reshape(shape)
}

/// Names the GPU that tests run on, as `--device` does; without it, it is interpreted. For machines that have one.
const DEVICE: &str = "ENGINE_TEST_DEVICE";

/// The real GPU that tests are to run on, if one is named.
fn real() -> Option<Device> {
    let name = std::env::var(DEVICE).ok()?;
    let ordinal = name.strip_prefix("cuda:").unwrap_or("0").parse().expect("cuda:N");
    Some(Device::cuda(ordinal).unwrap())
}

/// The CPU, and a GPU.
pub fn devices() -> [Device; 2] {
    [Device::Cpu, real().unwrap_or_else(|| Device::vm(ptxvm::Options::default()).unwrap())]
}

/// As [`devices`], and a GPU that runs the portable kernels: for ops that have others as well.
pub fn all_devices() -> Vec<Device> {
    let portable = real().is_none().then(|| Device::vm_of(PORTABLE, ptxvm::Options::default()).unwrap());
    devices().into_iter().chain(portable).collect()
}

/// What `f` gives on a GPU, whose bits are the same every time, and in whatever order an interpreted one does things.
pub fn on_vm(f: impl Fn(&Device) -> Vec<Tensor>) -> Vec<Tensor> {
    on_vm_of(HOPPER, f)
}

/// As [`on_vm`], with the kernels for a compute capability where it is interpreted.
pub fn on_vm_of(capability: (u32, u32), f: impl Fn(&Device) -> Vec<Tensor>) -> Vec<Tensor> {
    use ptxvm::{Options, Schedule};
    let run = |device: Device, name: &str| {
        let out = f(&device);
        device.check().unwrap_or_else(|e| panic!("{name}: {e}"));
        out.iter().map(|t| t.to(&Device::Cpu)).collect::<Vec<_>>()
    };
    let (first, again): (_, Vec<_>) = match real() {
        Some(device) => {
            let again = (0..20).map(|i| run(device.clone(), &format!("time {i}"))).collect();
            (run(device, "first"), again)
        }
        None => {
            let vm = |schedule: Schedule| {
                let device = Device::vm_of(capability, Options { schedule, ..Options::default() }).unwrap();
                run(device, &schedule.to_string())
            };
            let others = [Schedule::Lazy, Schedule::Descending, Schedule::Random(1), Schedule::Random(2)];
            (vm(Schedule::Eager), others.map(vm).into())
        }
    };
    for (i, again) in again.iter().enumerate() {
        let same = first.iter().zip(again).all(|(a, b)| a.to_raw() == b.to_raw());
        assert!(same && first.len() == again.len(), "run {i} gives other bits");
    }
    first
}

/// What `f` gives on an interpreted GPU whose approximate instructions err otherwise, within what is promised of them.
pub fn on_another_gpu(f: impl Fn(&Device) -> Vec<Tensor>) -> Vec<Tensor> {
    let device = Device::vm(ptxvm::Options { perturb: Some(1), ..Default::default() }).unwrap();
    let out = f(&device).iter().map(|t| t.to(&Device::Cpu)).collect();
    device.check().unwrap();
    out
}

/// Fails unless `got`, from a GPU, is at most twice as far from the exact `want` as the CPU's `reference` is; what both round
/// to at the end, `dtype`, may add one rounding.
pub fn check_precision(name: &str, got: &Tensor, reference: &Tensor, want: &[f64]) {
    let rounding = match got.dtype() {
        DType::F16 => 2f64.powi(-11),
        DType::Bf16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    };
    // Below the normal numbers of half precision there is one step for all: half of 2⁻²⁴ is lost.
    let largest = want.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    let step = if got.dtype() == DType::F16 { 2f64.powi(-25) / largest } else { 0.0 };
    let (error, allowed) = (max_error(got, want), 2.0 * max_error(reference, want) + rounding + step);
    assert!(error <= allowed, "{name}: off by {error:e}, allowed {allowed:e}");
}

/// The elements widened to f64.
pub fn wide(t: &Tensor) -> Vec<f64> {
    t.to_host().into_iter().map(f64::from).collect()
}

/// The elements' bits.
pub fn bits(t: &Tensor) -> Vec<u8> {
    t.to_raw()
}

/// Largest difference relative to the largest reference value.
pub fn max_error(got: &Tensor, want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    // NaN, which `max` would swallow, is as wrong as can be.
    let apart = |(g, w): (f64, &f64)| if g.is_nan() { f64::INFINITY } else { (g - w).abs() };
    wide(got).into_iter().zip(want).map(apart).fold(0.0, f64::max) / largest
}

/// Compares `grad` with central differences of `sum(dy · f(x))` in f64, at every element of `x`.
pub fn check_gradient(grad: &Tensor, x: &[f64], dy: &Tensor, f: impl Fn(&[f64]) -> Vec<f64>) {
    const STEP: f64 = 1e-5;
    let dy = wide(dy);
    let loss = |v: &[f64]| f(v).iter().zip(&dy).map(|(y, d)| y * d).sum::<f64>();
    let mut v = x.to_vec();
    let numeric: Vec<f64> = (0..x.len())
        .map(|i| {
            v[i] = x[i] + STEP;
            let up = loss(&v);
            v[i] = x[i] - STEP;
            let down = loss(&v);
            v[i] = x[i];
            (up - down) / (2.0 * STEP)
        })
        .collect();
    let error = max_error(grad, &numeric);
    // Central differences err by STEP² · f''' and f64 cancellation, both far below f32 rounding of the gradient.
    assert!(error < 2e-5, "gradient off by {error:e}");
}

/// Runs `f` on all nine samples with 1, 2 and 3 threads and on every sample alone; all bits must agree.
pub fn check_batch_invariance(name: &str, f: impl Fn(Range<usize>) -> Tensor + Sync) {
    let run = |threads: usize, samples: Range<usize>| with_threads(threads, || bits(&f(samples))).unwrap();
    let whole = run(1, 0..9);
    assert_eq!(whole, run(2, 0..9), "{name}");
    assert_eq!(whole, run(3, 0..9), "{name}");
    for i in 0..9 {
        assert!(whole[i * whole.len() / 9..(i + 1) * whole.len() / 9] == run(2, i..i + 1), "{name}: sample {i}");
    }
}
