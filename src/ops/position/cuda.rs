use crate::device::gpu::{Grid, suffix};
use crate::device::{DType, Tensor};

pub(super) fn add(x: &mut Tensor, table: &Tensor, starts: &[usize]) {
    let (gpu, b, d) = (x.gpu(), x.dim(0), x.dim(2));
    let per_line = x.dim(1) / starts.len() * d;
    let wider = if table.dtype() == DType::F32 { DType::F32 } else { x.dtype() };
    let blocks = Grid::packs(per_line, wider).blocks[0] as usize;
    let rows: Vec<u32> = starts.iter().map(|s| u32::try_from(*s).expect("a row of a table")).collect();
    let starts = gpu.table(&rows);
    let args = [x.arg_mut(), table.arg(), (&starts).into(), (per_line as u64).into(), (d as u32).into()];
    let entry = format!("position_add_{}_{}", suffix(x.dtype()), suffix(table.dtype()));
    gpu.launch("position", &entry, Grid::of([blocks, rows.len(), b], 256), args);
}
