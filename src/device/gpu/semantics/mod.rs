//! What instructions do, one by one: the kernels of kernels/semantics*.cu, and what must come of each by the PTX ISA, worked
//! out here in plain Rust. All other kernels rest on these rules, the interpreter on the same ones; a device that differs is
//! told apart here from a kernel that is wrong.

mod boxes;
mod matrices;
mod numbers;
mod order;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::{Arg, Gpu, Grid};
use crate::device::{DType, Device, Tensor};

/// Some instructions: what runs them, and what must come of it.
pub struct Check {
    /// What is checked.
    pub name: &'static str,
    /// Whether it takes compute capability 9.0.
    pub hopper: bool,
    /// Whether every device gives the same bits; else bounds hold, or what is no number may be any that is none.
    pub exact: bool,
    run: fn(&Device, usize) -> Vec<Tensor>,
    judge: fn(&[Vec<u8>], usize) -> Result<String>,
}

/// All of them.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    [numbers::CHECKS, matrices::CHECKS, boxes::CHECKS, order::CHECKS].into_iter().flatten()
}

impl Check {
    /// Whether a device can do it.
    pub fn fits(&self, gpu: &Gpu) -> bool {
        !self.hopper || gpu.is_hopper()
    }

    /// What comes of it: of `n` inputs where there is a choice.
    pub fn outputs(&self, device: &Device, n: usize) -> Vec<Tensor> {
        (self.run)(device, n)
    }

    /// Runs it on a device and compares with what must come of it; what is worth saying of the result.
    ///
    /// # Errors
    /// If the device fails, or something else comes of it: says what of what, and what was expected.
    pub fn run(&self, device: &Device, n: usize) -> Result<String> {
        let out: Vec<Vec<u8>> = self.outputs(device, n).iter().map(Tensor::to_raw).collect();
        device.check()?;
        (self.judge)(&out, n)
    }
}

/// Number `i` of a sequence without a pattern.
fn hash(seed: u64, i: usize) -> u64 {
    // splitmix64
    let mut z = (seed << 32).wrapping_add(i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A small integer of row `r` and column `c`, which every type holds and which is that of no neighbour.
fn small(side: usize, r: usize, c: usize) -> f32 {
    [(r * 7 + c * 13) % 17, (r * 11 + c * 5 + r / 8) % 15][side] as f32 - 8.0
}

fn gpu(device: &Device) -> Arc<Gpu> {
    let Device::Gpu(gpu) = device else { panic!("{device:?} is no GPU") };
    gpu.clone()
}

fn launch(device: &Device, entry: &str, grid: Grid, args: impl IntoIterator<Item = Arg>) {
    gpu(device).launch("semantics", entry, grid, args);
}

fn one_block(threads: u32) -> Grid {
    Grid::of([1, 1, 1], threads)
}

/// Room for so many bytes.
fn room(device: &Device, bytes: usize) -> Tensor {
    Tensor::scratch_of(device, DType::U8, &[bytes])
}

/// Bytes on a device.
fn given(device: &Device, bytes: &[u8]) -> Tensor {
    Tensor::from_bytes(device, bytes, &[bytes.len()])
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(bytes)
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// Bytes must be equal.
fn equal<T: PartialEq + std::fmt::LowerHex>(what: &str, got: &[T], want: &[T]) -> Result<()> {
    let differs = got.iter().zip(want).position(|(g, w)| g != w);
    if let Some(i) = differs {
        let n = got.iter().zip(want).filter(|(g, w)| g != w).count();
        ensure!(false, "{what}: number {i} is {:#x}, expected {:#x}; {n} of {} differ", got[i], want[i], want.len());
    }
    ensure!(got.len() == want.len(), "{what}: {} numbers, expected {}", got.len(), want.len());
    Ok(())
}
