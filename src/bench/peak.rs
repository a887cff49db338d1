//! The fastest that matrix products get on a device.

use std::time::{Duration, Instant};

use half::bf16;

use crate::device::philox::{Key, Purpose};
use crate::device::{DType, Device, Elems, Tensor};
use crate::ops::cpu::gemm::{Epilogue, Mat, matmul};
use crate::ops::linear::{self, Layer, Then};
use crate::ops::{copy, noise};

/// `[m, n, k]` of the product that is measured on the processor: the linear layers of SD3.5 Medium.
const ON_CPU: [usize; 3] = [512, 1536, 1536];
/// On a GPU, where smaller ones would not fill it.
const ON_GPU: [usize; 3] = [4096, 4096, 4096];
/// Launches between two looks at the clock.
const LAUNCHES: usize = 4;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// FLOP/s, two per multiply-add.
    pub rate: f64,
    /// The type of the weights.
    pub dtype: &'static str,
}

/// The rate of a large matrix product with weights of `dtype`, or what that is widened or decoded to, on `device` with the
/// threads at hand: the best of as many as `budget` has room for (the first is not counted), because what else runs on a
/// machine only ever makes one slower. `None` where time means nothing: interpreted, or a plan.
pub fn products(device: &Device, dtype: DType, budget: Duration) -> Option<Peak> {
    match (device, dtype) {
        (Device::Cpu, DType::Bf16) => Some(Peak { rate: on_cpu(true, budget), dtype: "bf16" }),
        (Device::Cpu, _) => Some(Peak { rate: on_cpu(false, budget), dtype: "f32" }),
        (Device::Gpu(_), dtype) if !device.is_plan() && !device.is_interpreted() => {
            let (dtype, name) = match dtype {
                DType::F32 => (dtype, "f32"),
                DType::F16 => (dtype, "f16"),
                _ => (DType::Bf16, "bf16"),
            };
            Some(Peak { rate: on_gpu(device, dtype, budget), dtype: name })
        }
        (Device::Gpu(_) | Device::Plan(_), _) => None,
    }
}

/// Of plain memory: a run's books of tensors do not see it.
fn on_cpu(half: bool, budget: Duration) -> f64 {
    let [m, n, k] = ON_CPU;
    let (x, mut y) = (vec![0.5f32; m * k], vec![0.0f32; m * n]);
    let (halves, singles);
    let weight = if half {
        halves = vec![bf16::from_f32(0.25); n * k];
        Elems::Bf16(&halves)
    } else {
        singles = vec![0.25f32; n * k];
        Elems::F32(&singles)
    };
    let product = || matmul(&mut y, n, Mat::new(&x, m, k), Mat::strided(weight, n, k, k).t(), Epilogue::default());
    (2 * m * n * k) as f64 / best(budget, product)
}

fn on_gpu(device: &Device, dtype: DType, budget: Duration) -> f64 {
    let [m, n, k] = ON_GPU;
    let (x, weight) = (random(device, device.activations(dtype), &[m, k]), random(device, dtype, &[n, k]));
    let layer = Layer { weight: &weight, bias: None };
    let product = || {
        for _ in 0..LAUNCHES {
            linear::forward(&x, layer, Then::Nothing);
        }
        // Waits; what has failed is found out by whoever comes next.
        let _ = device.check();
    };
    let seconds = best(budget, product) / LAUNCHES as f64;
    drop((x, weight));
    device.trim();
    (2 * m * n * k) as f64 / seconds
}

/// Numbers as a model has them: zeros would take less power, and be faster.
pub(super) fn random(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let whole = [1, shape.iter().product()];
    copy::cast(&noise::normal(device, &[Key::new(0, Purpose::ForwardNoise)], &whole), dtype).reshape(shape)
}

/// Seconds of the fastest `f`.
fn best(budget: Duration, mut f: impl FnMut()) -> f64 {
    f();
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    while best.is_infinite() || begin.elapsed() < budget {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best.max(f64::MIN_POSITIVE)
}
