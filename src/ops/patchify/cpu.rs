use rayon::prelude::*;

use super::{Order, Patches};
use crate::device::Tensor;

/// Visits every latent pixel of one sample as `(position in the latent, position in the tokens)`.
fn each(patches: &Patches, order: Order, mut f: impl FnMut(usize, usize)) {
    let (p, (rows, cols)) = (patches.size, patches.grid);
    for c in 0..patches.channels {
        for y in 0..rows * p {
            for x in 0..cols * p {
                let token = y / p * cols + x / p;
                let inside = match order {
                    Order::ChannelFirst => (c * p + y % p) * p + x % p,
                    Order::ChannelLast => (y % p * p + x % p) * patches.channels + c,
                };
                f((c * rows * p + y) * cols * p + x, token * patches.width() + inside);
            }
        }
    }
}

pub(super) fn forward(latent: &Tensor, patches: &Patches, order: Order) -> Tensor {
    let per_sample = patches.tokens() * patches.width();
    let mut out = Tensor::scratch(&[latent.dim(0), patches.tokens(), patches.width()]);
    let samples = out.data_mut().par_chunks_exact_mut(per_sample).zip(latent.data().par_chunks_exact(per_sample));
    samples.for_each(|(out, latent)| each(patches, order, |l, t| out[t] = latent[l]));
    out
}

pub(super) fn inverse(tokens: &Tensor, patches: &Patches, order: Order) -> Tensor {
    let per_sample = patches.tokens() * patches.width();
    let mut out = Tensor::scratch(&patches.latent_shape(tokens.dim(0)));
    let samples = out.data_mut().par_chunks_exact_mut(per_sample).zip(tokens.data().par_chunks_exact(per_sample));
    samples.for_each(|(out, tokens)| each(patches, order, |l, t| out[l] = tokens[t]));
    out
}
