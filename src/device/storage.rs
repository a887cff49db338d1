use std::sync::Arc;

use super::arena::Buffer;
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
    Plan(Reserved),
}

impl Storage {
    /// Storage of arbitrary content.
    pub(super) fn new(device: &Device, bytes: usize) -> Self {
        match device {
            Device::Cpu => Self::Host(Buffer::take(bytes)),
            Device::Plan(ledger) => Self::Plan(Reserved::new(ledger, bytes)),
        }
    }

    pub(super) fn device(&self) -> Device {
        match self {
            Self::Host(_) | Self::Mapped { .. } => Device::Cpu,
            Self::Plan(reserved) => Device::Plan(reserved.ledger().clone()),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Host(buffer) => buffer.bytes(),
            Self::Mapped { file, start, bytes, .. } => &file[*start..start + bytes],
            Self::Plan(_) => panic!("a planned tensor has no content"),
        }
    }

    /// What decoded blocks are times.
    pub(super) fn scale(&self) -> f32 {
        match self {
            Self::Mapped { scale, .. } => *scale,
            Self::Host(_) | Self::Plan(_) => 1.0,
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Host(buffer) => buffer.bytes_mut(),
            Self::Mapped { .. } => panic!("a mapped file is not written to"),
            Self::Plan(_) => panic!("a planned tensor has no content"),
        }
    }

    pub(super) fn elems(&self, dtype: DType) -> Elems<'_> {
        Elems::of(self.bytes(), dtype)
    }
}
