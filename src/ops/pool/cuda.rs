use crate::device::Tensor;
use crate::device::gpu::{Arg, Grid, small, vectors};

pub(super) fn average(y: &mut Tensor, x: &Tensor, [down, across]: [usize; 2]) {
    if y.is_empty() {
        return;
    }
    let (pack, form) = vectors(x.dim(3), [y.address(), x.address()]);
    let threads = y.len() / pack;
    let size = [x.dim(1), x.dim(2), x.dim(3), down, across, y.dim(1), y.dim(2)].map(small);
    let args = [y.arg_mut(), x.arg(), Arg::of(&size), small(threads).into()];
    x.gpu().launch("pool", &format!("pool_average_{form}"), Grid::flat(threads), args);
}
