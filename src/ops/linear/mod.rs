//! `y = x·Wᵀ + b`, and the same with a low-rank addition `+ s·(x·Aᵀ)·Bᵀ` (LoRA, Hu et al. 2021).

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Tensor, Weight};

/// The low-rank factors of one linear layer.
#[derive(Clone, Copy)]
pub struct LoraRef<'a> {
    /// `A`, `[rank, in]`.
    pub a: &'a Tensor,
    /// `B`, `[out, rank]`.
    pub b: &'a Tensor,
    /// `s = alpha / rank`.
    pub scale: f32,
}

/// Where the gradients of the low-rank factors are added up.
pub struct LoraGrad<'a> {
    /// `dL/dA`, `[rank, in]`; added to.
    pub a: &'a mut Tensor,
    /// `dL/dB`, `[out, rank]`; added to.
    pub b: &'a mut Tensor,
}

/// `y = x·Wᵀ + b (+ s·(x·Aᵀ)·Bᵀ)`.
///
/// `x` `[.., in]`, `w` `[out, in]`, `bias` `[out]`; returns `[.., out]`.
pub fn forward(x: &Tensor, w: &Weight, bias: Option<&Weight>, lora: Option<LoraRef>) -> Tensor {
    cpu::forward(x, w, bias, lora)
}

/// What to do with the gradient to the input.
pub enum InputGrad<'a> {
    /// It is not needed.
    Skip,
    /// Store it.
    Overwrite(&'a mut Tensor),
    /// Add it to what is there.
    Add(&'a mut Tensor),
}

/// The gradient to the input, `dx = dy·W (+ s·(dy·B)·A)`, and the gradients of the factors,
/// `dB += s·dyᵀ·(x·Aᵀ)`, `dA += s·(dy·B)ᵀ·x`. The frozen weight gets none.
///
/// `dy` `[.., out]`; `x` `[.., in]` as given to [`forward`], needed where there is a `grad`; `dx` `[.., in]`.
pub fn backward(
    dy: &Tensor,
    w: &Weight,
    x: Option<&Tensor>,
    lora: Option<LoraRef>,
    grad: Option<LoraGrad>,
    dx: InputGrad,
) {
    cpu::backward(dy, w, x, lora, grad, dx);
}
