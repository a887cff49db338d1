use crate::device::gpu::{Grid, suffix};
use crate::device::{DType, Tensor};
use crate::ops::{copy, dequantise};

pub(super) fn forward(y: &mut Tensor, ids: &[u32], table: &Tensor) {
    if matches!(table.dtype(), DType::Blocks(_)) {
        // Only the rows that are wanted.
        let rows: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
        return dequantise::decode(y, &copy::gather(table, &rows), table.scale());
    }
    let (gpu, d) = (table.gpu(), table.dim(1));
    // Four numbers a thread.
    let per_row = d.div_ceil(4);
    let n = u32::try_from(ids.len() * per_row).expect("fewer than 2^34 numbers of a table");
    let ids = gpu.table(ids);
    let sizes = [d as u32, per_row as u32, n].map(Into::into);
    let args = [y.arg_mut(), (&ids).into(), table.arg()].into_iter().chain(sizes);
    gpu.launch("embedding", &format!("embedding_forward_{}", suffix(table.dtype())), Grid::flat(n as usize), args);
}

pub(super) fn by_column(y: &mut Tensor, ids: &[u32], table: &Tensor) {
    let (gpu, d, n) = (table.gpu(), table.dim(1), ids.len());
    let blocks = Grid::flat(n).blocks[0] as usize;
    let ids = gpu.table(ids);
    let args = [y.arg_mut(), (&ids).into(), table.arg(), (d as u32).into(), (n as u32).into()];
    let entry = format!("embedding_by_column_{}", suffix(table.dtype()));
    gpu.launch("embedding", &entry, Grid::of([blocks, d, 1], 256), args);
}
