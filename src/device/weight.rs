use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;

/// How a stored number is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }
}

/// Borrowed elements in the type they are stored in.
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

#[derive(Clone)]
enum Storage {
    Mapped { file: Arc<Mmap>, bytes: Range<usize> },
    Owned(Arc<Vec<f32>>),
}

/// A frozen parameter: a view into a memory-mapped file in the type it is stored in. Cloning shares it.
#[derive(Clone)]
pub struct Weight {
    storage: Storage,
    dtype: DType,
    shape: Vec<usize>,
}

impl Weight {
    /// A view of `bytes` of a mapped file. The caller has checked that the range lies inside the file and
    /// has exactly the bytes that `shape` and `dtype` need. Data that the file does not align to its
    /// element size is copied (and widened), because it cannot be borrowed as numbers.
    pub fn mapped(file: Arc<Mmap>, bytes: Range<usize>, dtype: DType, shape: Vec<usize>) -> Self {
        let raw = &file[bytes.clone()];
        if raw.as_ptr().align_offset(dtype.size()) != 0 {
            let owned: Vec<f32> = match dtype {
                DType::F32 => bytemuck::pod_collect_to_vec(raw),
                DType::F16 => bytemuck::pod_collect_to_vec::<u8, f16>(raw).iter().map(|v| v.to_f32()).collect(),
                DType::Bf16 => bytemuck::pod_collect_to_vec::<u8, bf16>(raw).iter().map(|v| v.to_f32()).collect(),
            };
            return Self::owned(owned, shape);
        }
        Self { storage: Storage::Mapped { file, bytes }, dtype, shape }
    }

    /// A parameter held in memory in single precision.
    pub fn owned(data: Vec<f32>, shape: Vec<usize>) -> Self {
        assert_eq!(data.len(), shape.iter().product::<usize>(), "weight of shape {shape:?}");
        Self { storage: Storage::Owned(Arc::new(data)), dtype: DType::F32, shape }
    }

    /// The sizes of the axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Size of axis `axis`.
    pub fn dim(&self, axis: usize) -> usize {
        self.shape[axis]
    }

    /// The same elements with all axes from `axis` on folded into one.
    pub fn flatten_from(mut self, axis: usize) -> Self {
        let width = self.shape[axis..].iter().product();
        self.shape.truncate(axis);
        self.shape.push(width);
        self
    }

    /// The type the elements are stored in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The elements in the type they are stored in.
    pub fn elems(&self) -> Elems<'_> {
        match &self.storage {
            Storage::Owned(v) => Elems::F32(v),
            Storage::Mapped { file, bytes } => {
                let raw = &file[bytes.clone()];
                match self.dtype {
                    DType::F32 => Elems::F32(bytemuck::cast_slice(raw)),
                    DType::F16 => Elems::F16(bytemuck::cast_slice(raw)),
                    DType::Bf16 => Elems::Bf16(bytemuck::cast_slice(raw)),
                }
            }
        }
    }

    /// The elements in single precision; meant for vectors (bias, norm), not for matrices.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        self.elems().to_f32()
    }
}
