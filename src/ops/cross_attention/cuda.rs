use super::Heads;
use crate::device::gpu::{Arg, Grid, small};
use crate::device::{DType, Tensor};
use crate::ops::attention::Sequence;
use crate::ops::copy::cast;

/// Keys of a word of bits.
const WORD: usize = 32;

pub(super) fn forward(out: &mut Tensor, q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads, sees: Option<&Tensor>) {
    if out.is_empty() {
        return;
    }
    let (gpu, dtype, [q, k, v]) = (q.gpu(), out.dtype(), [q, k, v].map(|t| cast(t, DType::F32)));
    let words = sees.map(words);
    let seen = words.as_ref().map_or(Arg::Ptr(0), Tensor::arg);
    let launch = |out: &mut Tensor| {
        let sequence = Sequence::crossing(out, &q, [&k, &v], heads);
        let kernel = ["cross_attention", "cross_attention_f32"];
        sequence.launch_f32(&gpu, kernel, &[32, 64, 128], q.dim(0), [seen]);
    };
    if dtype == DType::F32 {
        return launch(out);
    }
    let mut wide = Tensor::scratch(&q.device(), q.shape());
    launch(&mut wide);
    *out = cast(&wide, dtype);
}

/// What each query may look at, a bit for each key, `[b, words, m]`.
fn words(sees: &Tensor) -> Tensor {
    let (gpu, [b, n, m]) = (sees.gpu(), [0, 1, 2].map(|axis| sees.dim(axis)));
    let count = n.div_ceil(WORD);
    // As large as numbers in single precision.
    let mut words = sees.scratch_like(&[b, count, m]);
    let args = [words.arg_mut(), sees.arg(), small(n).into(), small(m).into()];
    gpu.launch("cross_attention", "cross_attention_words", Grid::of([m.div_ceil(256), count, b], 256), args);
    let args = [words.arg_mut(), small(count).into(), small(m).into()];
    gpu.launch("cross_attention", "cross_attention_blind", Grid::of([m.div_ceil(32), b, 1], 256), args);
    words
}
