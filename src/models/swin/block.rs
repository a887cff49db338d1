use super::{EPS, StageConfig};
use crate::device::Tensor;
use crate::io::Scope;
use crate::models::{LayerNorm, Linear};
use crate::ops::activation::Activation;
use crate::ops::attention::{self, Heads, Mask, Part};
use crate::ops::copy;
use crate::ops::linear::{self, Then};
use crate::ops::windows::{self, KINDS, Windows};

/// What is added to the scores of pixels that do not see one another.
const UNSEEN: f32 = -100.0;

/// `x + attention(norm1(x))` within windows, then `x + mlp(norm2(x))`.
pub(super) struct Block {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    /// What is added to the scores in windows of each kind, `[heads, window², window²]`; alike in all without a shift.
    bias: Vec<Tensor>,
    heads: usize,
    window: usize,
    shift: usize,
}

impl Block {
    pub fn load(scope: &Scope, stage: &StageConfig, is_shifted: bool) -> Self {
        let &StageConfig { width, heads, inner, window, .. } = stage;
        let attention = scope.sub("attention");
        let square = |name: &str| Linear::load(&attention.sub("self").sub(name), width, width, true);
        let rows = (2 * window - 1) * (2 * window - 1);
        let table = attention.sub("self").tensor("relative_position_bias_table", &[rows, heads]);
        let shift = if is_shifted { window / 2 } else { 0 };
        Self {
            norm1: LayerNorm::load(&scope.sub("layernorm_before"), width, EPS),
            q: square("query"),
            k: square("key"),
            v: square("value"),
            out: Linear::load(&attention.sub("output").sub("dense"), width, width, true),
            norm2: LayerNorm::load(&scope.sub("layernorm_after"), width, EPS),
            fc1: Linear::load(&scope.sub("intermediate").sub("dense"), width, inner, true),
            fc2: Linear::load(&scope.sub("output").sub("dense"), inner, width, true),
            bias: biases(&table, window, shift),
            heads,
            window,
            shift,
        }
    }

    /// `x` `[b, h, w, width]`.
    pub fn forward(&self, mut x: Tensor) -> Tensor {
        let &[b, h, w, width] = x.shape() else { panic!("swin: {x:?}") };
        let windows = Windows { image: [h, w], size: self.window, shift: self.shift };
        let parts = windows::partition(&self.norm1.forward(&x), &windows);
        let [q, k, v] = linear::forward_each(&parts, [&self.q, &self.k, &self.v].map(|l| l.layer().into()));
        let scale = 1.0 / ((width / self.heads) as f32).sqrt();
        let heads = Heads { count: self.heads, scale, compute: self.q.weight.dtype() };
        let mut attended = Vec::new();
        for (range, bias) in windows.of_kinds(b).into_iter().zip(&self.bias).filter(|(range, _)| !range.is_empty()) {
            let [q, k, v] = [&q, &k, &v].map(|t| t.slice(range.clone()));
            let mask = Mask { causal: false, bias: Some(bias) };
            attended.extend(attention::forward(&[Part { q: &q, k: &k, v: &v }], heads, mask).out);
        }
        let attended = match attended.len() {
            1 => attended.remove(0),
            _ => copy::concat(&attended.iter().collect::<Vec<_>>()),
        };
        windows::add(&mut x, &self.out.forward(&attended), &windows);
        let hidden = self.fc1.then(&self.norm2.forward(&x), Then::Activate(Activation::GeluErf));
        self.fc2.then(&hidden, Then::Add(&x))
    }
}

/// The bias of every pair of pixels by their distance, and [`UNSEEN`] where they do not see one another, for windows of each of
/// [`KINDS`].
fn biases(table: &Tensor, window: usize, shift: usize) -> Vec<Tensor> {
    let (heads, n) = (table.dim(1), window * window);
    if table.device().is_plan() {
        return KINDS.iter().map(|_| table.scratch_like(&[heads, n, n])).collect();
    }
    let values = table.to_host();
    let windows = Windows { image: [window; 2], size: window, shift };
    let distance = |q: usize, k: usize| {
        let along = |a: usize, b: usize| a + window - 1 - b;
        along(q / window, k / window) * (2 * window - 1) + along(q % window, k % window)
    };
    let of = |kind| {
        let all = (0..heads).flat_map(|h| (0..n).flat_map(move |q| (0..n).map(move |k| (h, q, k))));
        let bias = |(h, q, k): (usize, usize, usize)| {
            values[distance(q, k) * heads + h] + if windows.sees(kind, q, k) { 0.0 } else { UNSEEN }
        };
        Tensor::from_slice(&table.device(), &all.map(bias).collect::<Vec<_>>(), &[heads, n, n])
    };
    (if shift == 0 { &KINDS[..1] } else { &KINDS }).iter().map(|kind| of(*kind)).collect()
}
