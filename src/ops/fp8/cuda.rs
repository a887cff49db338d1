use bytemuck::{NoUninit, Zeroable};

use super::{Layer, Rows, Work};
use crate::device::gpu::{Arg, DevicePtr, Grid, Swizzle, TensorMapDesc, suffix};
use crate::device::{DType, Tensor};
use crate::ops::activation::Activation;
use crate::ops::adaln::Chunk;
use crate::ops::linear::{self, Then};

/// As in kernels/fp8.sm_90a.cu: rows and columns of a tile, bytes of depth of a stage, bf16 numbers of it.
const TILE: usize = 128;
const DEPTH: usize = 128;
const LOW: usize = 64;

/// As in kernels/fp8.sm_90a.cu: what is done to a result; 0 is nothing.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Kind {
    GeluTanh = 1,
    GeluErf,
    QuickGelu,
    Silu,
    Add,
    AddGated,
}

/// As in kernels/fp8.sm_90a.cu: `Layer`.
#[derive(Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
struct Args {
    row_scales: DevicePtr,
    column_scales: DevicePtr,
    bias: DevicePtr,
    gate: DevicePtr,
    gate_stride: u32,
    per_sample: u32,
    m: u32,
    n: u32,
    k: u32,
    rank: u32,
    kind: u32,
    pad: u32,
}

fn size(n: usize) -> u32 {
    u32::try_from(n).expect("a dimension of a layer")
}

pub(super) fn quantise(numbers: &mut Tensor, scales: &mut Tensor, x: &Tensor) {
    let args = [numbers.arg_mut(), scales.arg_mut(), x.arg(), size(x.rows()).into(), size(x.width()).into()];
    x.gpu().launch("fp8", &format!("fp8_quantise_{}", suffix(x.dtype())), Grid::flat(32 * x.rows()), args);
}

/// `scale·from` in bf16, with zeros up to so many rows and columns.
fn packed(from: &Tensor, rows: usize, columns: usize, scale: f32) -> Tensor {
    let mut to = Tensor::scratch_of(&from.device(), DType::Bf16, &[rows, columns]);
    let sizes = [from.rows(), from.width(), rows, columns].map(|n| Arg::from(size(n)));
    let args = [to.arg_mut(), from.arg()].into_iter().chain(sizes).chain([scale.into()]);
    from.gpu().launch("fp8", "fp8_pack", Grid::flat(rows * columns), args);
    to
}

/// Boxes of `rows` rows of 128 bytes of a matrix whose elements are of `dtype`.
fn map(of: &Tensor, dtype: DType, rows: usize) -> Arg {
    let (height, width) = (of.rows() as u64, of.width() as u64);
    of.gpu().tensor_map(&TensorMapDesc {
        dtype,
        base: of.address(),
        dims: vec![width, height],
        strides: vec![width * dtype.bytes(1) as u64],
        tile: vec![size(DEPTH / dtype.bytes(1)), size(rows)],
        steps: vec![1, 1],
        swizzle: Swizzle::B128,
    })
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, quantised: &Rows, layer: Layer, then: Then, _: Option<&mut Work>) {
    let (m, n) = (y.rows(), y.width());
    if m == 0 {
        return;
    }
    assert_eq!(x.dtype(), DType::Bf16, "fp8: activations");
    let low = layer.lora.map(|l| {
        let rank = l.a.dim(0).next_multiple_of(LOW);
        let (a, b) = (packed(&l.a, rank, l.a.width(), l.scale), packed(&l.b, n, rank, 1.0));
        (linear::forward(x, linear::Layer { weight: &a, bias: None }, Then::Nothing), b)
    });
    let mut args = Args {
        row_scales: quantised.scales.address(),
        column_scales: layer.weight.scales.address(),
        bias: layer.bias.map_or(0, Tensor::address),
        per_sample: 1,
        m: size(m),
        n: size(n),
        k: size(x.width()),
        rank: low.as_ref().map_or(0, |(t, _)| size(t.width())),
        ..Args::zeroed()
    };
    let mut residual = None;
    let kind = match then {
        Then::Nothing | Then::Normalise { .. } => 0,
        Then::Activate(Activation::GeluTanh) => Kind::GeluTanh as u32,
        Then::Activate(Activation::GeluErf) => Kind::GeluErf as u32,
        Then::Activate(Activation::QuickGelu) => Kind::QuickGelu as u32,
        Then::Activate(Activation::Silu) => Kind::Silu as u32,
        Then::Add(r) => {
            residual = Some(r);
            Kind::Add as u32
        }
        Then::AddGated { residual: r, gate: Chunk { modulation, index } } => {
            residual = Some(r);
            assert_eq!(modulation.dtype(), DType::Bf16, "fp8: gate");
            args.gate = modulation.address() + DType::Bf16.bytes(index * n) as u64;
            (args.gate_stride, args.per_sample) = (size(modulation.width()), size(y.dim(1)));
            Kind::AddGated as u32
        }
    };
    assert!(residual.is_none_or(|r| r.dtype() == DType::Bf16), "fp8: residual");
    let args = Args { kind, ..args };

    let of = [&quantised.numbers, &layer.weight.numbers].map(|t| map(t, DType::U8, TILE));
    let low = low.as_ref().map(|(t, b)| [t, b].map(|t| map(t, DType::Bf16, TILE))).unwrap_or(of.clone());
    let _ = y.arg_mut();
    let result = map(y, DType::Bf16, TILE / 2);
    let residual = residual.map_or(result.clone(), |r| map(r, DType::Bf16, TILE / 2));
    let gpu = x.gpu();
    let blocks = (m.div_ceil(TILE) * n.div_ceil(TILE)).min(gpu.facts().processors as usize);
    let all = of.into_iter().chain(low).chain([result, residual, Arg::of(&args)]);
    gpu.launch("fp8", "fp8_linear", Grid::of([blocks, 1, 1], 384), all);
}
