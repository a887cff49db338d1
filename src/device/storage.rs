use std::sync::Arc;

use super::arena::Buffer;
use super::gpu;
use super::ledger::Reserved;
use super::{DType, Device, Elems, MappedFile};

/// Bytes on a device. Several tensors may be views of one storage; it is written only while one is.
pub(super) enum Storage {
    Host(Buffer),
    /// A read-only part of a file, whose numbers are times `scale` if they are in blocks.
    Mapped {
        file: Arc<MappedFile>,
        start: usize,
        bytes: usize,
        scale: f32,
    },
    /// On a GPU; numbers in blocks are times `scale`.
    Gpu {
        buffer: gpu::Buffer,
        scale: f32,
    },
    Plan(Reserved),
}

impl Storage {
    /// Storage of arbitrary content.
    pub(super) fn new(device: &Device, bytes: usize) -> Self {
        match device {
            Device::Cpu => Self::Host(Buffer::take(bytes)),
            Device::Gpu(gpu) => Self::Gpu { buffer: gpu::Buffer::take(gpu, bytes), scale: 1.0 },
            Device::Plan(ledger) => Self::Plan(Reserved::new(ledger, bytes)),
        }
    }

    pub(super) fn device(&self) -> Device {
        match self {
            Self::Host(_) | Self::Mapped { .. } => Device::Cpu,
            Self::Gpu { buffer, .. } => Device::Gpu(buffer.gpu().clone()),
            Self::Plan(reserved) => Device::Plan(reserved.ledger().clone()),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Host(buffer) => buffer.bytes(),
            Self::Mapped { file, start, bytes, .. } => &file[*start..start + bytes],
            Self::Gpu { .. } => panic!("numbers on a GPU are reached through to_host()"),
            Self::Plan(_) => panic!("a planned tensor has no content"),
        }
    }

    /// The memory of a GPU.
    pub(super) fn buffer(&self) -> &gpu::Buffer {
        match self {
            Self::Gpu { buffer, .. } => buffer,
            Self::Host(_) | Self::Mapped { .. } | Self::Plan(_) => panic!("not on a GPU"),
        }
    }

    /// What decoded blocks are times.
    pub(super) fn scale(&self) -> f32 {
        match self {
            Self::Mapped { scale, .. } | Self::Gpu { scale, .. } => *scale,
            Self::Host(_) | Self::Plan(_) => 1.0,
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Host(buffer) => buffer.bytes_mut(),
            Self::Mapped { .. } => panic!("a mapped file is not written to"),
            Self::Gpu { .. } => panic!("numbers on a GPU are written by kernels"),
            Self::Plan(_) => panic!("a planned tensor has no content"),
        }
    }

    pub(super) fn elems(&self, dtype: DType) -> Elems<'_> {
        Elems::of(self.bytes(), dtype)
    }
}
