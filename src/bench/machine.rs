//! Products and attention as Stable Diffusion 3.5 Medium has them for one image of 512x512 pixels.

use std::time::Duration;

use serde_json::{Value, json};

use super::measured::Measured;
use super::peak::{self, Peak, random};
use crate::device::work::{Kind, Work};
use crate::device::{DType, Device};
use crate::ops::attention::{self, Heads, Mask, OutputGrad, Part};
use crate::ops::linear::{self, Layer, Then};

/// Tokens of an image of 512x512 pixels and of its prompt: CLIP's 77 twice over.
const TOKENS: usize = 1178;
/// Heads and their width.
const HEADS: [usize; 2] = [24, 64];
/// `[in, out]` of the layers of a block.
const LAYERS: [[usize; 2]; 3] = [[1536, 1536], [1536, 6144], [6144, 1536]];
/// What peaks get of the time, and each of the measurements.
const PEAK: f64 = 0.03;
const EACH: f64 = 0.03;

/// What a device does in a second.
pub struct Machine {
    /// Of large products, by type: f32, then bf16.
    pub peaks: [Peak; 2],
    /// What was measured, each with the peak of its type.
    pub measured: Vec<(Measured, Peak)>,
}

impl Machine {
    /// Measures `device` for about a third of `budget`; `None` where time means nothing.
    pub fn measure(device: &Device, budget: Duration) -> Option<Self> {
        let types = [DType::F32, DType::Bf16];
        let [single, half] = types.map(|dtype| peak::products(device, dtype, budget.mul_f64(PEAK)));
        let peaks = [single?, half?];
        let (each, mut measured) = (budget.mul_f64(EACH), Vec::new());
        for (dtype, peak) in types.into_iter().zip(peaks) {
            measured.extend(LAYERS.map(|layer| (product(device, dtype, peak, layer, each), peak)));
        }
        // On a GPU attention is in half precision.
        let (dtype, peak) = if let Device::Gpu(_) = device { (types[1], peaks[1]) } else { (types[0], peaks[0]) };
        measured.extend(attention(device, dtype, each).map(|of| (of, peak)));
        Some(Self { peaks, measured })
    }

    /// The peak of products with weights of `dtype`.
    pub fn peak(&self, dtype: DType) -> Peak {
        let is_half = |peak: &&Peak| peak.dtype == "bf16";
        let wanted = if dtype == DType::F32 { None } else { self.peaks.iter().find(is_half) };
        *wanted.unwrap_or(&self.peaks[0])
    }

    /// As objects.
    pub fn json(&self) -> [(&'static str, Value); 2] {
        let peaks: serde_json::Map<_, _> = self.peaks.iter().map(|p| (p.dtype.to_string(), json!(p.rate))).collect();
        let measured: Vec<Value> = self.measured.iter().map(|(m, peak)| m.json(peak.rate)).collect();
        [("peak_flops_per_second", Value::Object(peaks)), ("measured", Value::Array(measured))]
    }
}

fn product(device: &Device, dtype: DType, peak: Peak, [inputs, outputs]: [usize; 2], budget: Duration) -> Measured {
    let x = random(device, device.activations(dtype), &[TOKENS, inputs]);
    let weight = random(device, dtype, &[outputs, inputs]);
    let layer = Layer { weight: &weight, bias: None };
    let flops = Work::of(Kind::Product, dtype, [TOKENS, outputs, inputs]).flops;
    let name = format!("product, {TOKENS} x {inputs} to {outputs}, {}", peak.dtype);
    Measured::of(name, flops, device, budget, || linear::forward(&x, layer, Then::Nothing))
}

/// Forward and backward.
fn attention(device: &Device, dtype: DType, budget: Duration) -> [Measured; 2] {
    let [count, width] = HEADS;
    let [q, k, v] = [(); 3].map(|()| random(device, device.activations(dtype), &[1, TOKENS, count * width]));
    let heads = Heads { count, scale: 1.0 / (width as f32).sqrt(), compute: dtype };
    let parts = [Part { q: &q, k: &k, v: &v }];
    let flops = |kind| Work::of(kind, dtype, [count, TOKENS, width]).flops;
    let name = |what| format!("attention, {count} heads x {width}, {TOKENS} tokens{what}");
    let forward = || attention::forward(&parts, heads, Mask::default());
    let done = forward();
    let outputs = [Some(OutputGrad { out: &done.out[0], dout: &q })];
    let backward = || attention::backward(&outputs, &done.lse, &parts, heads);
    [
        Measured::of(name(""), flops(Kind::Attention), device, budget, forward),
        Measured::of(name(", backward"), flops(Kind::AttentionGrad), device, budget, backward),
    ]
}
