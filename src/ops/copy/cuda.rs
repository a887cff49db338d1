use crate::device::gpu::{self, Arg, DevicePtr, Grid, suffix};
use crate::device::{DType, Tensor};

pub(super) fn gather(out: &mut Tensor, x: &Tensor, rows: &[usize]) {
    let (gpu, bytes) = (x.gpu(), x.dtype().bytes(x.len() / x.dim(0).max(1)) as u64);
    let unit = unit(&[x.address(), out.address(), bytes]);
    let (width, n) = (count(bytes / unit), count(bytes / unit * rows.len() as u64));
    let rows: Vec<u32> = rows.iter().map(|row| count(*row as u64)).collect();
    let table = gpu.table(&rows);
    let args = [out.arg_mut(), x.arg(), (&table).into(), width.into(), n.into()];
    gpu.launch("copy", &format!("copy_gather_{unit}"), Grid::flat(n as usize), args);
}

pub(super) fn flat_into(out: &mut Tensor, first: usize, x: &Tensor) {
    let dtype = x.dtype();
    let to = after(&out.arg_mut(), dtype.bytes(first) as u64);
    gpu::copy(&x.gpu(), to, x.address(), dtype.bytes(x.len()));
}

pub(super) fn block_into(out: &mut Tensor, token: usize, column: usize, x: &Tensor) {
    let (n, d, m, w) = (out.dim(1), out.dim(2), x.dim(1), x.dim(2));
    let to = Rows { first: token * d + column, sample: n * d, row: d };
    block(out, to, x, Rows { first: 0, sample: m * w, row: w }, [x.dim(0), m, w]);
}

pub(super) fn columns(out: &mut Tensor, x: &Tensor, first: usize) {
    let (width, rows) = (out.width(), x.rows());
    let to = Rows { first: 0, sample: 0, row: width };
    block(out, to, x, Rows { first, sample: 0, row: x.width() }, [1, rows, width]);
}

/// Where rows lie, in elements.
struct Rows {
    first: usize,
    sample: usize,
    row: usize,
}

/// Copies a block of `samples`, `rows` of each, `width` elements of each of these.
fn block(out: &mut Tensor, to: Rows, x: &Tensor, from: Rows, [samples, rows, width]: [usize; 3]) {
    let (gpu, bytes) = (x.gpu(), |elements: usize| x.dtype().bytes(elements) as u64);
    let [to, from] = [to, from].map(|r| [r.first, r.sample, r.row].map(bytes));
    let (to_first, from_first) = (after(&out.arg_mut(), to[0]), x.address() + from[0]);
    let unit = unit(&[to_first, to[1], to[2], from_first, from[1], from[2], bytes(width)]);
    let (width, rows) = (bytes(width) / unit, rows as u64);
    let n = count(samples as u64 * rows * width);
    let strides = |[_, sample, row]: [u64; 3]| Arg::of(&[sample / unit, row / unit]);
    let args = [
        Arg::Ptr(to_first),
        strides(to),
        Arg::Ptr(from_first),
        strides(from),
        count(rows).into(),
        count(width).into(),
        n.into(),
    ];
    gpu.launch("copy", &format!("copy_block_{unit}"), Grid::flat(n as usize), args);
}

/// The address so many bytes after a tensor's first.
fn after(tensor: &Arg, bytes: u64) -> DevicePtr {
    let Arg::Ptr(at) = tensor else { unreachable!("a tensor is given by its address") };
    at + bytes
}

/// The most bytes that one access may have if all of these, addresses and distances, are multiples of it.
fn unit(of: &[u64]) -> u64 {
    1 << of.iter().fold(16, |all, n| all | n).trailing_zeros()
}

fn count(n: u64) -> u32 {
    u32::try_from(n).expect("fewer than 2^32 units to copy")
}

pub(super) fn cast(out: &mut Tensor, x: &Tensor) {
    let (gpu, entry) = (x.gpu(), format!("copy_cast_{}_{}", suffix(x.dtype()), suffix(out.dtype())));
    let wider = if x.dtype() == DType::F32 { x.dtype() } else { out.dtype() };
    let grid = Grid::packs(x.len(), wider);
    gpu.launch("copy", &entry, grid, [out.arg_mut(), x.arg(), (x.len() as u64).into()]);
}
