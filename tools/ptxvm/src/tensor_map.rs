//! The layouts that bulk tensor copies go by, and the rules for them.

use crate::error::{Error, Result};
use crate::memory::DevicePtr;
use crate::types::Type;

/// What elements of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// Integers without a sign.
    Unsigned,
    /// Integers.
    Signed,
    /// IEEE floats of 16, 32 or 64 bits.
    Float,
    /// bf16.
    Bf16,
}

impl Number {
    pub(crate) fn of(self, bytes: u32) -> Option<Type> {
        Some(match (self, bytes) {
            (Number::Unsigned, 4) => Type::U32,
            (Number::Unsigned, 8) => Type::U64,
            (Number::Signed, 4) => Type::S32,
            (Number::Signed, 8) => Type::S64,
            (Number::Float, 2) => Type::F16,
            (Number::Float, 4) => Type::F32,
            (Number::Float, 8) => Type::F64,
            (Number::Bf16, 2) => Type::Bf16,
            _ => return None,
        })
    }
}

/// The layout of a tensor in device memory that bulk tensor copies go by (PTX ISA 5.5), innermost first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    /// Bytes of an element: 1, 2, 4 or 8.
    pub elem: u32,
    /// What an element is: only reductions ask.
    pub kind: Option<Number>,
    /// First byte.
    pub base: DevicePtr,
    /// Elements of each dimension.
    pub dims: Vec<u64>,
    /// Bytes from one element to the next, of all dimensions but the innermost.
    pub strides: Vec<u64>,
    /// Elements of a box.
    pub tile: Vec<u32>,
    /// Elements from one taken to the next.
    pub steps: Vec<u32>,
    /// Bytes of the swizzle pattern: 0, 32, 64 or 128.
    pub swizzle: u32,
}

impl TensorMap {
    /// The rules of `cuTensorMapEncodeTiled`.
    pub fn check(&self) -> Result<()> {
        let bad = |m: String| Err(Error::Memory(format!("tensor map: {m}")));
        let rank = self.dims.len();
        if !(1..=5).contains(&rank)
            || self.strides.len() != rank - 1
            || self.tile.len() != rank
            || self.steps.len() != rank
        {
            return bad(format!(
                "{rank} dimensions, {} strides, {} of a box, {} steps: expected 1 to 5 with as many each, one stride less",
                self.strides.len(),
                self.tile.len(),
                self.steps.len()
            ));
        }
        if !matches!(self.elem, 1 | 2 | 4 | 8) {
            return bad(format!("elements of {} bytes, expected 1, 2, 4 or 8", self.elem));
        }
        if !self.base.is_multiple_of(16) {
            return bad(format!("base {:#x}, expected a multiple of 16", self.base));
        }
        if let Some(d) = self.dims.iter().find(|&&d| d == 0 || d > 1 << 32) {
            return bad(format!("a dimension of {d}, expected 1 to 2^32"));
        }
        if let Some(s) = self.strides.iter().find(|&&s| s % 16 != 0 || s >= 1 << 40) {
            return bad(format!("a stride of {s} bytes, expected a multiple of 16 below 2^40"));
        }
        if let Some(b) = self.tile.iter().find(|&&b| b == 0 || b > 256) {
            return bad(format!("{b} elements in a box, expected 1 to 256"));
        }
        if let Some(s) = self.steps.iter().find(|&&s| s == 0 || s > 8) {
            return bad(format!("a step of {s}, expected 1 to 8"));
        }
        let inner = self.tile[0] * self.elem;
        if !matches!(self.swizzle, 0 | 32 | 64 | 128)
            || !inner.is_multiple_of(16)
            || self.swizzle != 0 && inner > self.swizzle
        {
            return bad(format!(
                "rows of {inner} bytes in a box with a swizzle of {}, expected a multiple of 16 that fits",
                self.swizzle
            ));
        }
        Ok(())
    }

    /// Elements along a dimension of the box that are loaded.
    pub(crate) fn loaded(&self, d: usize) -> u32 {
        self.tile[d].div_ceil(self.steps[d])
    }

    /// Bytes of a box in shared memory.
    pub(crate) fn box_bytes(&self) -> u32 {
        (0..self.tile.len()).fold(self.elem, |n, d| n.saturating_mul(self.loaded(d)))
    }
}
