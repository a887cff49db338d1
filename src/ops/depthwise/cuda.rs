use crate::device::Tensor;
use crate::device::gpu::{Arg, Grid, small, vectors};
use crate::ops::pointwise::{Bend, bend_arg};

/// Neighbouring windows of a thread.
const TOGETHER: usize = 4;

pub(super) fn forward(y: &mut Tensor, x: &Tensor, w: &Tensor, bias: &Tensor, stride: [usize; 2], by: Bend) {
    if y.is_empty() {
        return;
    }
    let (channels, [height, width]) = (x.dim(3), [1, 2].map(|axis| y.dim(axis)));
    let (n, form) = vectors(channels, [y.address(), x.address(), w.address(), bias.address()]);
    let kernel = w.dim(0).isqrt();
    let threads = y.dim(0) * height * width.div_ceil(TOGETHER) * (channels / n);
    let size = [x.dim(1), x.dim(2), channels, height, width, stride[0]].map(small);
    let entry = format!("depthwise_{kernel}_{}_{form}", stride[1]);
    let args = [y.arg_mut(), x.arg(), w.arg(), bias.arg(), Arg::of(&size), bend_arg(by), small(threads).into()];
    x.gpu().launch("depthwise", &entry, Grid::flat(threads), args);
}
