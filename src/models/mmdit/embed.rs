//! What surrounds the blocks: latents to tokens and back, positions, time and pooled text.

use rayon::prelude::*;

use super::Config;
use crate::device::{Tensor, Weight};
use crate::io::Scope;
use crate::models::Linear;
use crate::ops;

/// Width of the sinusoidal embedding of time.
const TIME_CHANNELS: usize = 256;

/// How a latent is cut into tokens: `[b, channels, h·p, w·p]` and `[b, h·w, p·p·channels]`.
#[derive(Clone, Copy)]
pub(super) struct Patches {
    pub channels: usize,
    pub size: usize,
    /// Tokens per column and row.
    pub grid: (usize, usize),
}

/// The order of the values inside a token.
#[derive(Clone, Copy)]
pub(super) enum Order {
    /// `(channel, y, x)`, as the weights of the patch convolution are stored.
    ChannelFirst,
    /// `(y, x, channel)`, as the output projection writes.
    ChannelLast,
}

impl Patches {
    pub(super) fn tokens(&self) -> usize {
        self.grid.0 * self.grid.1
    }

    fn width(&self) -> usize {
        self.size * self.size * self.channels
    }

    /// Visits every latent pixel of one sample as `(position in the latent, position in the tokens)`.
    fn each(&self, order: Order, mut f: impl FnMut(usize, usize)) {
        let (p, (rows, cols)) = (self.size, self.grid);
        for c in 0..self.channels {
            for y in 0..rows * p {
                for x in 0..cols * p {
                    let token = y / p * cols + x / p;
                    let inside = match order {
                        Order::ChannelFirst => (c * p + y % p) * p + x % p,
                        Order::ChannelLast => (y % p * p + x % p) * self.channels + c,
                    };
                    f((c * rows * p + y) * cols * p + x, token * self.width() + inside);
                }
            }
        }
    }

    /// Latents to tokens.
    pub(super) fn cut(&self, latent: &Tensor, order: Order) -> Tensor {
        let per_sample = self.tokens() * self.width();
        let mut out = Tensor::scratch(&[latent.dim(0), self.tokens(), self.width()]);
        let samples = out.data_mut().par_chunks_exact_mut(per_sample).zip(latent.data().par_chunks_exact(per_sample));
        samples.for_each(|(out, latent)| self.each(order, |l, t| out[t] = latent[l]));
        out
    }

    /// Tokens to latents.
    pub(super) fn paste(&self, tokens: &Tensor, order: Order) -> Tensor {
        let (p, (rows, cols)) = (self.size, self.grid);
        let per_sample = self.tokens() * self.width();
        let mut out = Tensor::scratch(&[tokens.dim(0), self.channels, rows * p, cols * p]);
        let samples = out.data_mut().par_chunks_exact_mut(per_sample).zip(tokens.data().par_chunks_exact(per_sample));
        samples.for_each(|(out, tokens)| self.each(order, |l, t| out[l] = tokens[t]));
        out
    }
}

/// Latents to tokens with their positions (diffusers' `PatchEmbed` with a cropped table).
pub(super) struct PatchEmbed {
    projection: Linear,
    /// `[max·max, hidden]`.
    positions: Weight,
    max: usize,
    hidden: usize,
}

impl PatchEmbed {
    pub(super) fn load(scope: &Scope, config: &Config) -> Self {
        let (d, p, max) = (config.hidden(), config.patch_size, config.pos_embed_max_size);
        let projection = scope.sub("proj");
        Self {
            // A convolution whose stride is its size is a linear layer on patches.
            projection: Linear {
                weight: projection.tensor("weight", &[d, config.in_channels, p, p]).flatten_from(1),
                bias: Some(projection.tensor("bias", &[d])),
            },
            positions: scope.tensor("pos_embed", &[1, max * max, d]),
            max,
            hidden: d,
        }
    }

    pub(super) fn forward(&self, latent: &Tensor, patches: &Patches) -> Tensor {
        let mut x = self.projection.forward(&patches.cut(latent, Order::ChannelFirst));
        let (rows, cols) = patches.grid;
        assert!(rows <= self.max && cols <= self.max, "latent of {rows}x{cols} tokens, table of {}", self.max);
        // The table is cropped around its centre.
        let (top, left) = ((self.max - rows) / 2, (self.max - cols) / 2);
        let d = self.hidden;
        let table = self.positions.elems();
        let lines: Vec<_> = (0..rows)
            .map(|y| {
                let start = (top + y) * self.max + left;
                table.slice(start * d..(start + cols) * d).to_f32()
            })
            .collect();
        x.data_mut().par_chunks_exact_mut(cols * d).enumerate().for_each(|(line, x)| {
            x.iter_mut().zip(lines[line % rows].iter()).for_each(|(x, p)| *x += p);
        });
        x
    }

    /// The gradient to the latent.
    pub(super) fn backward(&self, dx: &Tensor, patches: &Patches) -> Tensor {
        let mut d = Tensor::scratch(&[dx.dim(0), patches.tokens(), patches.width()]);
        let into = ops::linear::InputGrad::Overwrite(&mut d);
        ops::linear::backward(dx, &self.projection.weight, None, None, None, into);
        patches.paste(&d, Order::ChannelFirst)
    }
}

/// Time and pooled text to the vector that modulates every block.
pub(super) struct TimeTextEmbed {
    time: [Linear; 2],
    text: [Linear; 2],
}

impl TimeTextEmbed {
    pub(super) fn load(scope: &Scope, config: &Config) -> Self {
        let d = config.hidden();
        let pair = |name: &str, inputs| {
            let scope = scope.sub(name);
            [Linear::load(&scope.sub("linear_1"), inputs, d, true), Linear::load(&scope.sub("linear_2"), d, d, true)]
        };
        Self {
            time: pair("timestep_embedder", TIME_CHANNELS),
            text: pair("text_embedder", config.pooled_projection_dim),
        }
    }

    /// `timestep` `[b]` (1000·sigma) and `pooled` `[b, pooled]` to `silu(embedding)` `[b, hidden]`: every user of the
    /// embedding applies that first.
    pub(super) fn forward(&self, timestep: &[f32], pooled: &Tensor) -> Tensor {
        let run = |[first, second]: &[Linear; 2], x: &Tensor| {
            let mut h = first.forward(x);
            ops::activation::silu(&mut h);
            second.forward(&h)
        };
        let mut out = run(&self.time, &sinusoid(timestep));
        ops::activation::add(&mut out, &run(&self.text, pooled));
        ops::activation::silu(&mut out);
        out
    }
}

/// `[cos(t·f), sin(t·f)]` with `f = 10000^(−i/half)` (diffusers' `Timesteps` with `flip_sin_to_cos`).
fn sinusoid(timestep: &[f32]) -> Tensor {
    let half = TIME_CHANNELS / 2;
    let mut out = Tensor::scratch(&[timestep.len(), TIME_CHANNELS]);
    for (row, t) in out.data_mut().chunks_exact_mut(TIME_CHANNELS).zip(timestep) {
        for i in 0..half {
            // The exponent is rounded as PyTorch rounds it: times t up to 1000, that is seen in the velocity.
            let exponent = -(10_000f64.ln() as f32) * i as f32 / half as f32;
            let frequency = f64::from(exponent).exp() as f32;
            let (sin, cos) = (t * frequency).sin_cos();
            row[i] = cos;
            row[half + i] = sin;
        }
    }
    out
}
