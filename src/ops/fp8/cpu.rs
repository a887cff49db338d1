use rayon::prelude::*;

use super::{Layer, Rows, Work};
use crate::device::Tensor;
use crate::ops::activation;
use crate::ops::adaln::Chunk;
use crate::ops::cpu::gemm::{Epilogue, Mat, matmul};
use crate::ops::linear::Then;

/// The largest e4m3.
const LARGEST: f32 = 448.0;
/// Rows that are below this are zeros: their scale would leave the range of f32.
const NOTHING: f32 = 1e-30;

pub(super) fn quantise(numbers: &mut Tensor, scales: &mut Tensor, x: &Tensor) {
    let (width, x) = (x.width(), x.elems().to_f32());
    let rows = numbers.host_bytes_mut().par_chunks_mut(width).zip(x.par_chunks(width));
    rows.zip(scales.host_mut()).for_each(|((to, x), scale)| {
        let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let some = largest > NOTHING;
        let times = if some { LARGEST / largest } else { 0.0 };
        *scale = if some { largest / LARGEST } else { 0.0 };
        to.iter_mut().zip(x).for_each(|(to, v)| *to = e4m3(v * times));
    });
}

/// The nearest e4m3, half to even; what is larger than the largest becomes that.
pub(super) fn e4m3(v: f32) -> u8 {
    if v.is_nan() {
        return 0x7F;
    }
    let sign = (v.to_bits() >> 24) as u8 & 0x80;
    let magnitude = v.abs();
    // The step between neighbours: 2⁻⁹ for subnormal numbers, else an eighth of the power of two below.
    let exponent = (magnitude.to_bits() >> 23) as i32 - 127;
    let step = 2f32.powi(exponent.max(-6) - 3);
    let rounded = ((magnitude / step).round_ties_even() * step).min(LARGEST);
    let bits = rounded.to_bits();
    let code = match (bits >> 23) as i32 - 127 {
        ..=-7 => (rounded * 512.0) as u8,
        exponent => ((exponent + 7) as u8) << 3 | (bits >> 20 & 7) as u8,
    };
    sign | code
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, quantised: &Rows, layer: Layer, then: Then, work: Option<&mut Work>) {
    let (rows, inputs, outputs) = (x.rows(), x.width(), y.width());
    let per_sample = rows / x.dim(0).max(1);
    let Work { operands: [numbers, weight], low } = work.expect("there is for the CPU");
    let [row_scales, column_scales] = [&quantised.scales, &layer.weight.scales].map(|s| s.host());
    if let (Some([t, low]), Some(l)) = (low.as_mut(), layer.lora) {
        let scale = Epilogue { scale: l.scale, ..Epilogue::default() };
        matmul(t.host_mut(), l.a.dim(0), Mat::of(x), Mat::of(&l.a).t(), scale);
        matmul(low.host_mut(), outputs, Mat::of(t), Mat::of(&l.b).t(), Epilogue::default());
    }
    let low = low.as_ref().map(|[_, low]| low.host());
    let bias = layer.bias.map(|b| b.elems().to_f32());
    let y = y.host_mut();
    matmul(y, outputs, Mat::new(numbers.host(), rows, inputs), Mat::weight(weight).t(), Epilogue::default());
    y.par_chunks_mut(outputs).enumerate().for_each(|(i, y)| {
        let row = i * outputs..(i + 1) * outputs;
        y.iter_mut().zip(column_scales).for_each(|(y, scale)| *y = *y * row_scales[i] * scale);
        for more in low.map(|low| &low[row.clone()]).into_iter().chain(bias.as_deref()) {
            y.iter_mut().zip(more).for_each(|(y, v)| *y += v);
        }
        match then {
            Then::Nothing | Then::Normalise { .. } => {}
            Then::Activate(kind) => activation::apply(y, kind),
            Then::Add(residual) => y.iter_mut().zip(&residual.host()[row]).for_each(|(y, r)| *y += r),
            Then::AddGated { residual, gate: Chunk { modulation, index } } => {
                let gate = &modulation.host()[i / per_sample * modulation.width() + index * outputs..][..outputs];
                let residual = &residual.host()[row];
                y.iter_mut().zip(residual).zip(gate).for_each(|((y, r), gate)| *y = r + gate * *y);
            }
        }
    });
}
