use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use crate::device::{Blocks, DType, Device, MOST_AXES, MappedFile, Tensor};

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// One by one.
    Plain(Dtype),
    /// To be decoded.
    Blocks(Blocks),
}

impl Stored {
    /// What a safetensors file calls `dtype`.
    pub(super) fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F8_E4M3 => Self::Blocks(Blocks::F8E4M3),
            Dtype::F8_E5M2 => Self::Blocks(Blocks::F8E5M2),
            other => Self::Plain(other),
        }
    }

    /// What safetensors calls it, if it knows it.
    pub(super) fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Plain(dtype) => Some(dtype),
            Self::Blocks(Blocks::F8E4M3) => Some(Dtype::F8_E4M3),
            Self::Blocks(Blocks::F8E5M2) => Some(Dtype::F8_E5M2),
            Self::Blocks(_) => None,
        }
    }

    /// Its name in safetensors or GGUF.
    pub fn name(self) -> String {
        match self {
            Self::Plain(dtype) => format!("{dtype:?}"),
            Self::Blocks(blocks) => blocks.name().to_string(),
        }
    }

    /// The type of the same numbers on a device, if the engine computes with them.
    fn on_device(self) -> Option<DType> {
        match self {
            Self::Plain(Dtype::F32) => Some(DType::F32),
            Self::Plain(Dtype::F16) => Some(DType::F16),
            Self::Plain(Dtype::BF16) => Some(DType::Bf16),
            Self::Blocks(blocks) => Some(DType::Blocks(blocks)),
            Self::Plain(_) => None,
        }
    }
}

/// Where one tensor is stored, and how.
#[derive(Clone)]
pub struct Entry {
    bytes: Bytes,
    stored: Stored,
    /// What decoded blocks are times.
    scale: f32,
    shape: Vec<usize>,
}

#[derive(Clone)]
enum Bytes {
    Mapped(Arc<MappedFile>, Range<usize>),
    Own(Arc<[u8]>),
}

impl Entry {
    /// `bytes` of a file, which lie in it and are as many as the others say.
    pub(super) fn new(file: &Arc<MappedFile>, bytes: Range<usize>, stored: Stored, shape: &[usize]) -> Self {
        Self { bytes: Bytes::Mapped(file.clone(), bytes), stored, scale: 1.0, shape: shape.to_vec() }
    }

    /// Numbers that are in no file.
    pub fn of_f32(values: &[f32], shape: &[usize]) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "entry of shape {shape:?}");
        let bytes: Arc<[u8]> = bytemuck::cast_slice(values).into();
        Self { bytes: Bytes::Own(bytes), stored: Stored::Plain(Dtype::F32), scale: 1.0, shape: shape.to_vec() }
    }

    /// Bytes that are in no file, as many as the others say.
    pub(super) fn of_bytes(bytes: Vec<u8>, stored: Stored, shape: &[usize]) -> Self {
        Self { bytes: Bytes::Own(bytes.into()), stored, scale: 1.0, shape: shape.to_vec() }
    }

    /// The sizes of the axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How the numbers are stored.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// What the decoded numbers are times: 1 but for fp8.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Bytes in the file.
    pub fn size(&self) -> usize {
        self.raw().len()
    }

    /// The raw little-endian bytes.
    pub fn raw(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(file, range) => &file[range.clone()],
            Bytes::Own(bytes) => bytes,
        }
    }

    /// The tensor on `device`, as it is stored (vectors on a GPU in single precision), if the engine computes with that and
    /// with as many axes. On the CPU it is a view of the mapped file.
    pub fn tensor(&self, device: &Device) -> Option<Tensor> {
        if self.shape.len() > MOST_AXES {
            return None;
        }
        let dtype = self.stored.on_device()?;
        Some(match (device, &self.bytes) {
            // What is added to or multiplied with f32 sums is kept in f32: kernels then have one type for it.
            (Device::Gpu(_), _) if self.shape.len() == 1 && dtype.computed() == dtype => {
                if device.is_plan() {
                    // The file stays unread.
                    return Some(Tensor::scratch(device, &self.shape));
                }
                Tensor::from_slice(device, &self.to_f32()?, &self.shape)
            }
            (Device::Gpu(_), _) => Tensor::from_raw(device, dtype, self.scale, self.raw(), &self.shape),
            (Device::Plan(ledger), _) => Tensor::planned(ledger, dtype, &self.shape),
            (Device::Cpu, Bytes::Mapped(file, range)) => {
                Tensor::mapped(file, range.clone(), dtype, self.scale, &self.shape)
            }
            (Device::Cpu, Bytes::Own(bytes)) => {
                let mut own = Tensor::scratch_of(device, dtype, &self.shape);
                own.host_bytes_mut().copy_from_slice(bytes);
                own
            }
        })
    }

    /// The numbers in single precision, if that is what they can be.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        match self.stored {
            Stored::Plain(Dtype::F64) => {
                Some(bytemuck::pod_collect_to_vec::<u8, f64>(self.raw()).iter().map(|v| *v as f32).collect())
            }
            Stored::Blocks(blocks) => {
                let mut values = vec![0.0; self.shape.iter().product()];
                blocks.decode(self.raw(), self.scale, &mut values);
                Some(values)
            }
            Stored::Plain(_) => Some(self.tensor(&Device::Cpu)?.elems().to_f32().into_owned()),
        }
    }

    /// The first number that is not finite, and where it is; looks at no types that the engine does not compute with.
    pub(super) fn first_non_finite(&self) -> Option<(usize, f32)> {
        /// Whole blocks of every format.
        const CHUNK: usize = 1 << 13;
        let Stored::Blocks(blocks) = self.stored else {
            let stored = self.tensor(&Device::Cpu)?;
            let at = stored.elems().first_non_finite()?;
            return Some((at, stored.elems().get(at)));
        };
        let mut values = vec![0.0; CHUNK];
        for (i, bytes) in self.raw().chunks(CHUNK / blocks.elements() * blocks.bytes()).enumerate() {
            let values = &mut values[..bytes.len() / blocks.bytes() * blocks.elements()];
            blocks.decode(bytes, self.scale, values);
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Some((i * CHUNK + at, values[at]));
            }
        }
        None
    }

    /// The first number of a magnitude beyond `most`, and where it is.
    pub(super) fn first_beyond(&self, most: f32) -> Option<(usize, f32)> {
        if most == f32::MAX {
            return None;
        }
        let values = self.to_f32()?;
        let at = values.iter().position(|v| v.abs() > most)?;
        Some((at, values[at]))
    }

    /// The same numbers in another shape with as many of them, whose rows are whole blocks.
    pub fn reshaped(&self, shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), ..self.clone() }
    }

    /// Of every `of` runs of `length` outermost entries the one numbered `which`, in memory of its own.
    pub fn strided(&self, which: usize, of: usize, length: usize) -> Self {
        let run = self.size() / self.shape[0].max(1) * length;
        let runs = self.raw().chunks_exact(run.max(1)).skip(which).step_by(of);
        let bytes: Vec<u8> = runs.flatten().copied().collect();
        let shape = std::iter::once(self.shape[0] / of).chain(self.shape[1..].iter().copied()).collect();
        Self { bytes: Bytes::Own(bytes.into()), shape, ..self.clone() }
    }

    /// The outermost entries `rows`.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let row = self.size() / self.shape[0].max(1);
        let within = |start: usize| start + rows.start * row..start + rows.end * row;
        let bytes = match &self.bytes {
            Bytes::Mapped(file, range) => Bytes::Mapped(file.clone(), within(range.start)),
            Bytes::Own(bytes) => Bytes::Own(bytes[within(0)].into()),
        };
        let shape = std::iter::once(rows.len()).chain(self.shape[1..].iter().copied()).collect();
        Self { bytes, shape, ..self.clone() }
    }

    /// The same numbers one by one: blocks are decoded.
    fn plain(&self) -> Self {
        match self.stored {
            Stored::Blocks(_) => Self::of_f32(&self.to_f32().expect("blocks are numbers"), &self.shape),
            Stored::Plain(_) => self.clone(),
        }
    }

    /// A matrix with its rows as columns, in memory of its own; blocks are decoded.
    pub fn transposed(&self) -> Self {
        let &[rows, columns] = self.shape() else { panic!("transposing {:?}", self.shape) };
        let plain = self.plain();
        let size = plain.size() / (rows * columns).max(1);
        let mut bytes = Vec::with_capacity(plain.size());
        for column in 0..columns {
            for row in 0..rows {
                bytes.extend_from_slice(&plain.raw()[(row * columns + column) * size..][..size]);
            }
        }
        Self { bytes: Bytes::Own(bytes.into()), shape: vec![columns, rows], ..plain }
    }

    /// The lower half of the outermost entries before the upper one, in memory of its own; blocks are decoded.
    pub fn swapped(&self) -> Self {
        let plain = self.plain();
        let (upper, lower) = plain.raw().split_at(plain.size() / 2);
        let bytes = Bytes::Own([lower, upper].concat().into());
        Self { bytes, ..plain }
    }

    /// The same blocks, whose numbers are times `scale`; others stay as they are.
    pub(super) fn times(&self, scale: f32) -> Self {
        Self { scale: self.scale * scale, ..self.clone() }
    }
}
