use crate::device::Tensor;
use crate::device::gpu::{Grid, type_code};
use crate::ops::products::{Difference, Terms};

pub(super) fn forward(out: &mut Tensor, differences: &[Difference], coefficients: &[Vec<f64>]) {
    let (gpu, rows, dtype) = (out.gpu(), out.dim(0), type_code(out.dtype()));
    let length = out.len() / rows.max(1);
    let terms = Terms::of(&gpu, differences);
    let of_row = |row: usize| coefficients.iter().map(move |c| c[row] / length as f64);
    let factors = gpu.table(&(0..rows).flat_map(of_row).collect::<Vec<f64>>());
    let tables = [&terms.operands, &terms.weights, &factors].map(Into::into);
    let sizes = [differences.len() as u32, length as u32].map(Into::into);
    let args = [out.arg_mut(), dtype.into()].into_iter().chain(tables).chain(sizes);
    gpu.launch("combine", "combine_forward", Grid::of([length.div_ceil(1024), rows, 1], 256), args);
}
