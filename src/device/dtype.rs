use std::borrow::Cow;
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Blocks;

/// How a number is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// A byte, for pictures.
    U8,
    /// Smaller than anything is computed with: weights as a file has them, decoded by
    /// [`ops::dequantise`](crate::ops::dequantise) where they are used.
    Blocks(Blocks),
}

impl DType {
    /// Bytes of so many elements; of blocks, these are whole ones.
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            DType::F32 => elements.saturating_mul(4),
            DType::F16 | DType::Bf16 => elements.saturating_mul(2),
            DType::U8 => elements,
            DType::Blocks(blocks) => {
                assert!(elements.is_multiple_of(blocks.elements()), "{elements} elements of {}", blocks.name());
                (elements / blocks.elements()).saturating_mul(blocks.bytes())
            }
        }
    }

    /// What the numbers are in once they are at hand: single precision for blocks, but see
    /// [`dequantise::operand`](crate::ops::dequantise::operand).
    pub fn computed(self) -> Self {
        match self {
            DType::Blocks(_) => DType::F32,
            plain => plain,
        }
    }

    /// What the address of an element is a multiple of.
    pub(super) fn align(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::U8 | DType::Blocks(_) => 1,
        }
    }
}

/// Borrowed floating-point elements in the type they are stored in.
#[derive(Clone, Copy)]
pub enum Elems<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

impl<'a> Elems<'a> {
    /// The elements that `bytes`, aligned to their size, hold.
    pub(super) fn of(bytes: &'a [u8], dtype: DType) -> Self {
        match dtype {
            DType::F32 => Elems::F32(bytemuck::cast_slice(bytes)),
            DType::F16 => Elems::F16(bytemuck::cast_slice(bytes)),
            DType::Bf16 => Elems::Bf16(bytemuck::cast_slice(bytes)),
            DType::U8 => panic!("bytes are not floating-point numbers"),
            DType::Blocks(blocks) => panic!("{} is decoded before it is used", blocks.name()),
        }
    }

    /// Number of elements.
    pub fn len(self) -> usize {
        match self {
            Elems::F32(x) => x.len(),
            Elems::F16(x) => x.len(),
            Elems::Bf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Element `i`, widened.
    #[inline]
    pub fn get(self, i: usize) -> f32 {
        match self {
            Elems::F32(x) => x[i],
            Elems::F16(x) => x[i].to_f32(),
            Elems::Bf16(x) => x[i].to_f32(),
        }
    }

    /// Elements `range`, in the type they are stored in.
    pub fn slice(self, range: Range<usize>) -> Elems<'a> {
        match self {
            Elems::F32(x) => Elems::F32(&x[range]),
            Elems::F16(x) => Elems::F16(&x[range]),
            Elems::Bf16(x) => Elems::Bf16(&x[range]),
        }
    }

    /// Writes all elements to `out`, widened; the two are equally long.
    pub fn widen_into(self, out: &mut [f32]) {
        match self {
            Elems::F32(x) => out.copy_from_slice(x),
            Elems::F16(x) => x.convert_to_f32_slice(out),
            Elems::Bf16(x) => x.convert_to_f32_slice(out),
        }
    }

    /// All elements in single precision: borrowed where they already are, widened otherwise.
    pub fn to_f32(self) -> Cow<'a, [f32]> {
        match self {
            Elems::F32(x) => Cow::Borrowed(x),
            half => {
                let mut out = vec![0.0; half.len()];
                half.widen_into(&mut out);
                Cow::Owned(out)
            }
        }
    }

    /// Index of the first element that is not finite.
    pub fn first_non_finite(self) -> Option<usize> {
        match self {
            Elems::F32(x) => first(x, |v| v.to_bits() & 0x7F80_0000 == 0x7F80_0000),
            Elems::F16(x) => first(x, |v| v.to_bits() & 0x7C00 == 0x7C00),
            Elems::Bf16(x) => first(x, |v| v.to_bits() & 0x7F80 == 0x7F80),
        }
    }
}

/// Index of the first element that `is`. Billions are looked at when a model is loaded: a chunk is looked at whole,
/// which makes vector code, and only one with a find is searched.
fn first<T: Copy>(x: &[T], is: impl Fn(T) -> bool) -> Option<usize> {
    const CHUNK: usize = 1024;
    let found = x.chunks(CHUNK).position(|c| c.iter().fold(false, |found, v| found | is(*v)))? * CHUNK;
    Some(found + x[found..].iter().position(|v| is(*v))?)
}
