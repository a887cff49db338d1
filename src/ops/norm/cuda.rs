use crate::device::Tensor;
use crate::device::gpu::{Grid, Results, suffix};

pub(super) fn sum_of_squares(x: &Tensor) -> f64 {
    let (gpu, entry) = (x.gpu(), format!("norm_sum_of_squares_{}", suffix(x.dtype())));
    let blocks = x.len().div_ceil(4096);
    let sums = Results::<f64>::scratch(&gpu, blocks);
    let args = [(&sums).into(), x.arg(), (x.len() as u64).into()];
    gpu.launch("norm", &entry, Grid::of([blocks, 1, 1], 128), args);
    sums.read().iter().sum()
}

pub(super) fn first_non_finite(x: &Tensor) -> Option<(usize, f32)> {
    let (gpu, entry) = (x.gpu(), format!("norm_first_non_finite_{}", suffix(x.dtype())));
    let found = Results::<u64>::ones(&gpu, 1);
    let args = [(&found).into(), x.arg(), (x.len() as u64).into()];
    gpu.launch("norm", &entry, Grid::packs(x.len(), x.dtype()), args);
    let at = usize::try_from(found.read()[0]).ok().filter(|at| *at < x.len())?;
    Some((at, x.clone().reshape(&[x.len()]).view(at, &[1]).to_host()[0]))
}
