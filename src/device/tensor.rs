use std::ops::{Deref, Range};
use std::sync::Arc;

use half::{bf16, f16};

use super::gpu::{Arg, Buffer, DevicePtr, Gpu};
use super::ledger::Reserved;
use super::storage::Storage;
use super::{Blocks, DType, Device, Elems, Ledger, MappedFile, Wide};

/// Most axes a tensor has.
pub const MOST_AXES: usize = 6;

/// The sizes of a tensor's axes, outermost first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    sizes: [usize; MOST_AXES],
    rank: usize,
}

impl Shape {
    /// The shape with these sizes; at most six.
    pub fn new(sizes: &[usize]) -> Self {
        assert!(sizes.len() <= MOST_AXES, "{sizes:?} has more than {MOST_AXES} axes");
        let mut shape = Self { sizes: [0; MOST_AXES], rank: sizes.len() };
        shape.sizes[..sizes.len()].copy_from_slice(sizes);
        shape
    }

    /// Number of elements; of a shape that only a damaged file can ask for, the largest there is.
    pub fn elements(&self) -> usize {
        if self.contains(&0) { 0 } else { self.iter().fold(1, |n, size| n.saturating_mul(*size)) }
    }
}

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.deref().fmt(f)
    }
}

/// A contiguous row-major view of numbers on a device: activations, parameters, parts of either. Cloning, slicing and
/// reshaping share the storage; nothing is copied but by [`ops::copy`](crate::ops::copy).
///
/// A tensor is written to only while nothing else shares its storage: whoever does otherwise has made a mistake, and it
/// panics. (A hidden copy would move data that others hold addresses of.)
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    dtype: DType,
    /// Elements of the storage before the first.
    offset: usize,
    shape: Shape,
    /// How it is multiplied if not in the type it is stored in.
    wide: Option<Wide>,
}

impl Tensor {
    /// A single-precision tensor whose content is arbitrary: for outputs that are overwritten whole.
    pub fn scratch(device: &Device, shape: &[usize]) -> Self {
        Self::scratch_of(device, DType::F32, shape)
    }

    /// As [`Tensor::scratch`], of another type.
    pub fn scratch_of(device: &Device, dtype: DType, shape: &[usize]) -> Self {
        let shape = Shape::new(shape);
        let storage = Arc::new(Storage::new(device, dtype.bytes(shape.elements())));
        Self { storage, dtype, offset: 0, shape, wide: None }
    }

    /// A tensor of arbitrary content on the same device as `self`, and of its type if that is one to compute in.
    pub fn scratch_like(&self, shape: &[usize]) -> Self {
        let dtype = match self.dtype {
            DType::F32 | DType::F16 | DType::Bf16 => self.dtype,
            DType::U8 | DType::Blocks(_) => DType::F32,
        };
        Self::scratch_of(&self.device(), dtype, shape)
    }

    /// A single-precision tensor of zeros.
    pub fn zeros(device: &Device, shape: &[usize]) -> Self {
        let mut t = Self::scratch(device, shape);
        match device {
            Device::Cpu => t.host_mut().fill(0.0),
            Device::Gpu(_) => t.storage.buffer().fill(0, 4 * t.len(), 0),
            Device::Plan(_) => {}
        }
        t
    }

    /// A tensor of zeros on the same device and of the same type as `self`, which is not one of blocks.
    pub fn zeros_like(&self, shape: &[usize]) -> Self {
        let mut t = self.scratch_like(shape);
        match t.device() {
            Device::Cpu => t.host_bytes_mut().fill(0),
            Device::Gpu(_) => t.storage.buffer().fill(0, t.dtype.bytes(t.len()), 0),
            Device::Plan(_) => {}
        }
        t
    }

    /// A tensor holding a copy of `data`, which must have exactly as many elements as `shape`.
    pub fn from_slice(device: &Device, data: &[f32], shape: &[usize]) -> Self {
        let mut t = Self::scratch(device, shape);
        assert_eq!(data.len(), t.len(), "tensor of shape {shape:?}");
        match device {
            Device::Cpu => t.host_mut().copy_from_slice(data),
            Device::Gpu(_) => t.storage.buffer().write(0, bytemuck::cast_slice(data)),
            Device::Plan(_) => {}
        }
        t
    }

    /// A tensor of bytes holding a copy of `data`.
    pub fn from_bytes(device: &Device, data: &[u8], shape: &[usize]) -> Self {
        assert_eq!(data.len(), shape.iter().product::<usize>(), "tensor of shape {shape:?}");
        Self::from_raw(device, DType::U8, 1.0, data, shape)
    }

    /// A tensor of `dtype` whose bytes, as [`Tensor::to_raw`] gives them, are `data`; numbers in blocks are times `scale`.
    pub fn from_raw(device: &Device, dtype: DType, scale: f32, data: &[u8], shape: &[usize]) -> Self {
        assert_eq!(data.len(), dtype.bytes(Shape::new(shape).elements()), "tensor of shape {shape:?}");
        if let Device::Gpu(gpu) = device {
            let buffer = Buffer::take(gpu, data.len());
            buffer.write(0, data);
            let storage = Arc::new(Storage::Gpu { buffer, scale });
            return Self { storage, dtype, offset: 0, shape: Shape::new(shape), wide: None };
        }
        let mut t = Self::scratch_of(device, dtype, shape);
        if matches!(device, Device::Cpu) {
            assert_eq!(scale, 1.0, "blocks on the CPU stay in their file");
            t.host_bytes_mut().copy_from_slice(data);
        }
        t
    }

    /// The tensor on `device`: itself if it is there.
    pub fn to(&self, device: &Device) -> Self {
        match (self.device(), device) {
            (Device::Cpu, Device::Cpu) | (Device::Plan(_), _) => self.clone(),
            (Device::Gpu(own), Device::Gpu(other)) if Arc::ptr_eq(&own, other) => self.clone(),
            (_, Device::Plan(_)) => Self::scratch_of(device, self.dtype, &self.shape).multiplied(self.wide),
            _ => Self::from_raw(device, self.dtype, self.storage.scale(), &self.to_raw(), &self.shape)
                .multiplied(self.wide),
        }
    }

    /// A view of `bytes` of a mapped file, whose numbers are times `scale` if they are in blocks. The caller has checked that
    /// the range lies inside the file and has exactly the bytes that `shape` and `dtype` need. Data that the file does not
    /// align to its element size is copied (and widened), because it cannot be borrowed as numbers.
    pub fn mapped(file: &Arc<MappedFile>, bytes: Range<usize>, dtype: DType, scale: f32, shape: &[usize]) -> Self {
        let raw = &file[bytes.clone()];
        if raw.as_ptr().align_offset(dtype.align()) != 0 {
            let widened: Vec<f32> = match dtype {
                DType::F32 => bytemuck::pod_collect_to_vec(raw),
                DType::F16 => bytemuck::pod_collect_to_vec::<u8, f16>(raw).iter().map(|v| v.to_f32()).collect(),
                DType::Bf16 => bytemuck::pod_collect_to_vec::<u8, bf16>(raw).iter().map(|v| v.to_f32()).collect(),
                DType::U8 | DType::Blocks(_) => unreachable!("bytes are always aligned"),
            };
            return Self::from_slice(&Device::Cpu, &widened, shape);
        }
        let storage = Storage::Mapped { file: file.clone(), start: bytes.start, bytes: bytes.len(), scale };
        Self { storage: Arc::new(storage), dtype, offset: 0, shape: Shape::new(shape), wide: None }
    }

    /// What stands for a mapped part of a file on a device that only counts: it takes no memory of its own.
    pub fn planned(ledger: &Arc<Ledger>, dtype: DType, shape: &[usize]) -> Self {
        let (storage, shape) = (Storage::Plan(Reserved::new(ledger, 0)), Shape::new(shape));
        ledger.map(dtype.bytes(shape.elements()) as u64);
        Self { storage: Arc::new(storage), dtype, offset: 0, shape, wide: None }
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        self.storage.device()
    }

    /// The type of its elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The same weight, multiplied in single precision in this way whatever its type, or in its own type.
    pub fn multiplied(self, wide: Option<Wide>) -> Self {
        Self { wide, ..self }
    }

    /// How a weight is multiplied if not in the type it is stored in.
    pub fn wide(&self) -> Option<Wide> {
        self.wide
    }

    /// The type that a weight is multiplied in; of blocks, what they are stored in.
    pub fn multiplied_in(&self) -> DType {
        if self.wide.is_some() { DType::F32 } else { self.dtype }
    }

    /// The sizes of the axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Size of axis `axis`.
    pub fn dim(&self, axis: usize) -> usize {
        self.shape[axis]
    }

    /// Size of the last axis.
    pub fn width(&self) -> usize {
        *self.shape.last().expect("a tensor has at least one axis")
    }

    /// Number of rows when all axes but the last are folded into one.
    pub fn rows(&self) -> usize {
        self.len() / self.width().max(1)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.elements()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `Ok` if nothing else shares the storage, so that it can be written to.
    ///
    /// # Errors
    /// Gives the tensor back as it is.
    pub fn unshared(self) -> Result<Self, Self> {
        if Arc::strong_count(&self.storage) == 1 { Ok(self) } else { Err(self) }
    }

    /// The same elements under another shape with the same number of them.
    pub fn reshape(mut self, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.len(), "reshape {:?} to {shape:?}", self.shape);
        self.shape = Shape::new(shape);
        self
    }

    /// The outermost entries `range`.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let inner: usize = self.shape[1..].iter().product();
        let mut shape = self.shape;
        shape.sizes[0] = range.len();
        self.view(range.start * inner, &shape)
    }

    /// The elements from `first` on under `shape`.
    pub fn view(&self, first: usize, shape: &[usize]) -> Self {
        let shape = Shape::new(shape);
        let fits = first + shape.elements() <= self.len();
        assert!(fits, "a view of {shape:?} from element {first} of {:?}", self.shape);
        Self { storage: self.storage.clone(), offset: self.offset + first, shape, ..*self }
    }

    /// A copy of the elements in this process's memory, widened: the one place that waits for the device. A plan gives
    /// zeros.
    pub fn to_host(&self) -> Vec<f32> {
        match self.device() {
            Device::Cpu => self.elems().to_f32().into_owned(),
            Device::Gpu(_) => {
                // In words, so that numbers of every type are aligned.
                let mut raw = vec![0u32; self.dtype.bytes(self.len()).div_ceil(4)];
                let raw = &mut bytemuck::cast_slice_mut(&mut raw)[..self.dtype.bytes(self.len())];
                self.storage.buffer().read(self.dtype.bytes(self.offset), raw);
                Elems::of(raw, self.dtype).to_f32().into_owned()
            }
            Device::Plan(ledger) => {
                ledger.touch(4 * self.len() as u64);
                vec![0.0; self.len()]
            }
        }
    }

    /// A copy of the elements in this process's memory as they are stored, in its byte order. A plan gives zeros.
    pub fn to_raw(&self) -> Vec<u8> {
        let (from, length) = (self.dtype.bytes(self.offset), self.dtype.bytes(self.len()));
        match self.device() {
            Device::Cpu => self.storage.bytes()[from..][..length].to_vec(),
            Device::Gpu(_) => {
                let mut raw = vec![0; length];
                self.storage.buffer().read(from, &mut raw);
                raw
            }
            Device::Plan(ledger) => {
                ledger.touch(length as u64);
                vec![0; length]
            }
        }
    }

    /// The GPU it is on.
    pub(crate) fn gpu(&self) -> Arc<Gpu> {
        self.storage.buffer().gpu().clone()
    }

    /// Where its first element is on the GPU, for reading.
    pub(crate) fn arg(&self) -> Arg {
        Arg::Ptr(self.address())
    }

    /// Where its first element is on the GPU, for writing.
    pub(crate) fn arg_mut(&mut self) -> Arg {
        Arg::Ptr(self.address_mut())
    }

    /// As [`Tensor::arg_mut`], as a number.
    pub(crate) fn address_mut(&mut self) -> DevicePtr {
        assert_eq!(Arc::strong_count(&self.storage), 1, "a tensor is written to only while nothing shares it");
        self.pass(true)
    }

    /// As [`Tensor::arg`], as a number.
    pub(crate) fn address(&self) -> DevicePtr {
        self.pass(false)
    }

    /// Where its first element is on the GPU, for a kernel that is about to be launched: a plan counts the bytes.
    fn pass(&self, is_written: bool) -> DevicePtr {
        let buffer = self.storage.buffer();
        let at = buffer.ptr() + self.dtype.bytes(self.offset) as u64;
        if let Some(ledger) = buffer.gpu().ledger() {
            ledger.pass(at, self.bytes(), is_written);
        }
        at
    }

    /// Bytes of its elements as they are stored.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes(self.len())
    }

    /// The elements, row-major, where they lie.
    pub(crate) fn host(&self) -> &[f32] {
        match self.elems() {
            Elems::F32(x) => x,
            _ => panic!("{self:?} is not single precision"),
        }
    }

    /// The elements for writing.
    pub(crate) fn host_mut(&mut self) -> &mut [f32] {
        assert_eq!(self.dtype, DType::F32, "{self:?} is not single precision");
        bytemuck::cast_slice_mut(self.host_bytes_mut())
    }

    /// The elements in the type they are stored in, where they lie.
    pub(crate) fn elems(&self) -> Elems<'_> {
        self.storage.elems(self.dtype).slice(self.offset..self.offset + self.len())
    }

    /// What decoded blocks are times.
    pub(crate) fn scale(&self) -> f32 {
        self.storage.scale()
    }

    /// The blocks of a tensor that is stored in them, and what their numbers are times.
    pub(crate) fn blocks(&self) -> Option<(Blocks, &[u8], f32)> {
        let DType::Blocks(blocks) = self.dtype else { return None };
        let (from, length) = (self.dtype.bytes(self.offset), self.dtype.bytes(self.len()));
        Some((blocks, &self.storage.bytes()[from..][..length], self.storage.scale()))
    }

    /// The bytes of a tensor of bytes.
    pub(crate) fn host_bytes(&self) -> &[u8] {
        assert_eq!(self.dtype, DType::U8, "{self:?} holds no bytes");
        &self.storage.bytes()[self.offset..][..self.len()]
    }

    /// The bytes as they are stored, of whatever type.
    pub(crate) fn stored_bytes(&self) -> &[u8] {
        let (from, length) = (self.dtype.bytes(self.offset), self.dtype.bytes(self.len()));
        &self.storage.bytes()[from..][..length]
    }

    /// The bytes for writing, of whatever type.
    pub(crate) fn host_bytes_mut(&mut self) -> &mut [u8] {
        let (from, length) = (self.dtype.bytes(self.offset), self.dtype.bytes(self.len()));
        let storage = Arc::get_mut(&mut self.storage).expect("a tensor is written to only while nothing shares it");
        &mut storage.bytes_mut()[from..][..length]
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor{:?}", self.shape)?;
        if self.dtype == DType::F32 { Ok(()) } else { write!(f, " {:?}", self.dtype) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor::from_slice(&Device::Cpu, &(0..n).map(|i| i as f32).collect::<Vec<_>>(), shape)
    }

    #[test]
    fn views_share_the_numbers_they_show() {
        let t = numbered(&[3, 2, 2]);
        assert_eq!(t.slice(1..3).host(), [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
        let inner = t.slice(1..3).view(2, &[1, 3]);
        assert_eq!((inner.shape(), inner.host()), (&[1, 3][..], &[6.0, 7.0, 8.0][..]));
        assert_eq!(t.clone().reshape(&[6, 2]).slice(5..6).host(), [10.0, 11.0]);
    }

    #[test]
    #[should_panic(expected = "a tensor is written to only while nothing shares it")]
    fn writing_to_a_shared_buffer_is_a_mistake() {
        let mut t = numbered(&[4]);
        let _shared = t.slice(0..1);
        t.host_mut()[3] = 0.0;
    }

    #[test]
    #[should_panic(expected = "a view of [3] from element 2 of [4]")]
    fn a_view_cannot_leave_its_tensor() {
        numbered(&[4]).view(2, &[3]);
    }

    #[test]
    fn fresh_buffers_hold_nan_in_tests_also_recycled_ones() {
        for _ in 0..2 {
            let mut t = Tensor::scratch(&Device::Cpu, &[1 << 13]);
            assert!(t.host().iter().all(|v| v.is_nan()));
            t.host_mut().fill(1.0);
        }
    }
}
