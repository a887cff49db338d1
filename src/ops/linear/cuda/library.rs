//! Products by a library, which rounds them to the type of the result. Biases and low-rank additions are then added by our
//! kernels, as a product of no depth with what it is added to; what follows a layer is done by the ops that do it elsewhere.

use super::portable::{Finish, Kind, Problem, Weight};
use super::{Call, Output, Then};
use crate::device::DType;
use crate::device::gpu::driver::Product;
use crate::device::gpu::{DevicePtr, Gpu, Products};
use crate::ops::{activation, copy, gate};

/// A result `[.., width]`.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub at: DevicePtr,
    pub width: usize,
    pub dtype: DType,
}

/// Whether a product in `dtype` goes to the library: where lines begin at multiples of 16 bytes. Other widths are ours.
pub(super) fn takes(gpu: &Gpu, dtype: DType, y: Place) -> bool {
    let is_even = y.width.is_multiple_of(8) && y.at.is_multiple_of(16);
    gpu.products() != Products::Own && dtype != DType::F32 && is_even
}

/// The product of `problem`, without what is added to it, of operands in `dtype`.
pub(super) fn product(problem: &Problem, lies: Weight, dtype: DType, out: DType, adds: bool) -> Product {
    let Problem { x, w, y, m, n, k, ldx, ldw, .. } = *problem;
    Product { dtype, out, y, x, w, m, n, k, ldy: n, ldx, ldw, along: lies == Weight::Along, adds, is_pinned: true }
}

/// What is left of `problem` when the library is done, and what is done to it.
pub(super) fn rest(problem: Problem, out: DType) -> (Problem, Finish) {
    let added_to = Finish { kind: Kind::Add as u32, residual: problem.y, ..Finish::plain(out) };
    (Problem { k: 0, ..problem }, added_to)
}

/// What follows the layer, but for norms, of which the result is in `y`.
pub(super) fn follow(call: &Call, Output { y, hidden, .. }: &mut Output) {
    match call.then {
        Then::Nothing | Then::Normalise { .. } => {}
        Then::Activate(activation) => {
            if !hidden.is_empty() {
                copy::rows_into(hidden, 0, &y.slice(0..hidden.dim(0)));
            }
            activation::forward(y, activation);
        }
        Then::Add(residual) => activation::add(y, residual),
        Then::AddGated { residual, gate } => {
            *y = gate::backward(y, gate);
            activation::add(y, residual);
        }
    }
}
