use rayon::prelude::*;

use super::{Order, Patches};
use crate::device::Tensor;
use crate::ops::cpu::at_least;

/// Visits every run of latent pixels of one sample that lie in one row of one patch, as `(position in the latent, position
/// in the tokens, distance there)`; the latent is `height` by `width`.
fn each(patches: &Patches, order: Order, [height, width]: [usize; 2], mut f: impl FnMut(usize, usize, usize)) {
    let (p, (rows, cols)) = (patches.size, patches.grid);
    for c in 0..patches.channels {
        for y in 0..rows * p {
            for col in 0..cols {
                let token = (y / p * cols + col) * patches.width();
                let (inside, step) = match order {
                    Order::ChannelFirst => ((c * p + y % p) * p, 1),
                    Order::ChannelLast => (y % p * p * patches.channels + c, patches.channels),
                };
                f((c * height + y) * width + col * p, token + inside, step);
            }
        }
    }
}

pub(super) fn forward(out: &mut Tensor, latent: &Tensor, patches: &Patches, order: Order) {
    let (size, p) = ([latent.dim(2), latent.dim(3)], patches.size);
    let (from, to) = (latent.len() / latent.dim(0).max(1), patches.tokens() * patches.width());
    let samples = out.host_mut().par_chunks_exact_mut(to.max(1)).zip(latent.host().par_chunks_exact(from.max(1)));
    samples.with_min_len(at_least(1)).for_each(|(out, latent)| {
        each(patches, order, size, |l, t, step| {
            out[t..].iter_mut().step_by(step).zip(&latent[l..l + p]).for_each(|(o, v)| *o = *v);
        });
    });
}

pub(super) fn inverse(out: &mut Tensor, tokens: &Tensor, patches: &Patches, order: Order) {
    let (size, p) = ([out.dim(2), out.dim(3)], patches.size);
    let per_sample = patches.tokens() * patches.width();
    let samples = out.host_mut().par_chunks_exact_mut(per_sample).zip(tokens.host().par_chunks_exact(per_sample));
    samples.with_min_len(at_least(1)).for_each(|(out, tokens)| {
        each(patches, order, size, |l, t, step| {
            out[l..l + p].iter_mut().zip(tokens[t..].iter().step_by(step)).for_each(|(o, v)| *o = *v);
        });
    });
}
