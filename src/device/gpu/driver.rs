//! What the engine asks of a GPU: memory, kernels, launches, graphs. [`Vm`](super::vm::Vm) is one that interprets.

use anyhow::{Result, bail};

use super::DType;

/// An address of device memory; 0 is none.
pub type DevicePtr = u64;

/// What a device is and has.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Facts {
    /// As its maker calls it.
    pub name: String,
    /// Compute capability, such as 9 and 0.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub processors: u32,
    /// Bytes of memory.
    pub memory: u64,
}

/// A kernel that a driver has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function(pub u32);

/// What a kernel takes, as the driver has compiled it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionInfo {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's local memory: what was spilt, and arrays.
    pub local: u32,
    /// Bytes of static shared memory.
    pub shared: u32,
    /// The most threads a block may have.
    pub threads: u32,
}

/// Launches that a driver has recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub u32);

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// A device address.
    Ptr(DevicePtr),
    /// 32 bits, unsigned.
    U32(u32),
    /// 32 bits, signed.
    I32(i32),
    /// 64 bits.
    U64(u64),
    /// Single precision.
    F32(f32),
    /// A tensor map, for bulk copies.
    Map(TensorMap),
    /// A struct by value, as C lays it out.
    Bytes(Box<[u8]>),
}

impl Arg {
    /// A struct by value.
    pub fn of<T: bytemuck::NoUninit>(value: &T) -> Self {
        Self::Bytes(bytemuck::bytes_of(value).into())
    }

    /// The bytes that the kernel gets.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Ptr(v) | Self::U64(v) => v.to_le_bytes().to_vec(),
            Self::U32(v) => v.to_le_bytes().to_vec(),
            Self::I32(v) => v.to_le_bytes().to_vec(),
            Self::F32(v) => v.to_le_bytes().to_vec(),
            Self::Map(map) => bytemuck::bytes_of(&map.0).to_vec(),
            Self::Bytes(bytes) => bytes.to_vec(),
        }
    }
}

macro_rules! from {
    ($($ty:ty => $variant:ident as $as:ty),*) => {
        $(impl From<$ty> for Arg {
            fn from(v: $ty) -> Self {
                Self::$variant(v as $as)
            }
        })*
    };
}
from!(u32 => U32 as u32, i32 => I32 as i32, u64 => U64 as u64, f32 => F32 as f32);

/// The opaque bytes of a tensor map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

/// How shared memory holds the rows of a box, so that reading columns meets no bank conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// As they come.
    None,
    /// Patterns of 32 bytes.
    B32,
    /// Patterns of 64 bytes.
    B64,
    /// Patterns of 128 bytes.
    B128,
}

impl Swizzle {
    /// Bytes of a pattern.
    pub fn bytes(self) -> u32 {
        match self {
            Self::None => 0,
            Self::B32 => 32,
            Self::B64 => 64,
            Self::B128 => 128,
        }
    }
}

/// The layout of a tensor that bulk copies go by, innermost dimension first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorMapDesc {
    /// Type of the elements; not blocks.
    pub dtype: DType,
    /// First element.
    pub base: DevicePtr,
    /// Elements of each dimension.
    pub dims: Vec<u64>,
    /// Bytes from one element to the next of every dimension but the innermost.
    pub strides: Vec<u64>,
    /// Elements of a box.
    pub tile: Vec<u32>,
    /// Elements from one taken to the next.
    pub steps: Vec<u32>,
    /// How shared memory holds it.
    pub swizzle: Swizzle,
}

impl TensorMapDesc {
    /// The rules of `cuTensorMapEncodeTiled`, which every driver goes by.
    ///
    /// # Errors
    /// Says which rule is broken, what was found and what is expected.
    pub fn check(&self) -> Result<()> {
        let rank = self.dims.len();
        if !(1..=5).contains(&rank)
            || self.strides.len() + 1 != rank
            || self.tile.len() != rank
            || self.steps.len() != rank
        {
            bail!(
                "tensor map: {rank} dimensions with {} strides, a box of {} and {} steps; expected 1 to 5, one stride less",
                self.strides.len(),
                self.tile.len(),
                self.steps.len()
            );
        }
        if !self.base.is_multiple_of(16) {
            bail!("tensor map: base {:#x}, expected a multiple of 16", self.base);
        }
        if let Some(d) = self.dims.iter().find(|d| !(1..=1 << 32).contains(*d)) {
            bail!("tensor map: a dimension of {d}, expected 1 to 2^32");
        }
        if let Some(s) = self.strides.iter().find(|s| !s.is_multiple_of(16) || **s >= 1 << 40) {
            bail!("tensor map: a stride of {s} bytes, expected a multiple of 16 below 2^40");
        }
        if let Some(b) = self.tile.iter().find(|b| !(1..=256).contains(*b)) {
            bail!("tensor map: {b} elements in a box, expected 1 to 256");
        }
        if let Some(s) = self.steps.iter().find(|s| !(1..=8).contains(*s)) {
            bail!("tensor map: a step of {s}, expected 1 to 8");
        }
        let (inner, pattern) = (self.tile[0] * self.dtype.bytes(1) as u32, self.swizzle.bytes());
        if !inner.is_multiple_of(16) || (pattern != 0 && inner > pattern) {
            bail!(
                "tensor map: rows of {inner} bytes in a box, swizzled by {pattern}; expected a multiple of 16 that fits"
            );
        }
        Ok(())
    }
}

/// A kernel on a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Which.
    pub function: Function,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// In the order of the kernel's parameters.
    pub args: Vec<Arg>,
}

/// `y = x·w` or `y += x·w`, summed in f32 and rounded once. Lines begin at multiples of 16 bytes; ld are the elements from line
/// to line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Type of `x` and `w`, f16 or bf16.
    pub dtype: DType,
    /// Type of `y`: the same, or f32.
    pub out: DType,
    /// `[m, n]`.
    pub y: DevicePtr,
    /// `[m, k]`.
    pub x: DevicePtr,
    /// `[n, k]` if it lies `along`, else `[k, n]`.
    pub w: DevicePtr,
    /// Rows.
    pub m: u32,
    /// Columns.
    pub n: u32,
    /// Depth.
    pub k: u32,
    /// Of `y`.
    pub ldy: u32,
    /// Of `x`.
    pub ldx: u32,
    /// Of `w`.
    pub ldw: u32,
    /// How `w` lies.
    pub along: bool,
    /// Whether what is in `y` is added to.
    pub adds: bool,
    /// Whether a row's bits may not depend on `m`.
    pub is_pinned: bool,
}

/// What a device can be asked to do without an answer, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Run a kernel.
    Launch(Launch),
    /// Multiply by a library, which [`Driver::prepare_products`] has made ready.
    Product(Product),
    /// Copy bytes on the device.
    Copy {
        /// To here,
        to: DevicePtr,
        /// from there,
        from: DevicePtr,
        /// so many.
        bytes: usize,
    },
    /// From now on these bytes are arbitrary, because memory is used anew: for drivers that watch.
    Forget {
        /// From here on,
        at: DevicePtr,
        /// so many.
        bytes: usize,
    },
    /// Set bytes.
    Fill {
        /// From here on,
        to: DevicePtr,
        /// so many,
        bytes: usize,
        /// to this.
        byte: u8,
    },
}

/// A GPU, real or interpreted. Everything happens in the order it is asked for.
pub trait Driver: Send + Sync {
    /// What it is.
    fn facts(&self) -> &Facts;

    /// Bytes of memory that are free.
    ///
    /// # Errors
    /// If the device has failed.
    fn free_memory(&self) -> Result<u64>;

    /// Bytes that kernels, graphs and tables take beside what is asked for: an upper bound.
    fn overhead(&self) -> u64 {
        1 << 20
    }

    /// Memory of arbitrary content, aligned to 256 bytes.
    ///
    /// # Errors
    /// If there is not enough; says how much was asked for and how much is left.
    fn alloc(&self, bytes: usize) -> Result<DevicePtr>;

    /// Gives back what [`Driver::alloc`] gave.
    fn free(&self, ptr: DevicePtr);

    /// Copies to the device; `data` may go when this returns.
    ///
    /// # Errors
    /// If the device has failed.
    fn write(&self, to: DevicePtr, data: &[u8]) -> Result<()>;

    /// Copies from the device when all that was asked for is done.
    ///
    /// # Errors
    /// If the device, or anything that it was asked to do, has failed.
    fn read(&self, from: DevicePtr, out: &mut [u8]) -> Result<()>;

    /// Waits until all that was asked for is done.
    ///
    /// # Errors
    /// If any of it has failed.
    fn synchronize(&self) -> Result<()>;

    /// The kernel `entry` of a module, which is loaded once; it may be launched with so much dynamic shared memory.
    ///
    /// # Errors
    /// If the driver refuses the PTX, or there is no such entry.
    fn function(&self, file: &'static str, ptx: &'static str, entry: &str, shared: u32) -> Result<Function>;

    /// Makes ready for [`Op::Product`].
    ///
    /// # Errors
    /// If the library for it is not usable.
    fn prepare_products(&self) -> Result<()> {
        Ok(())
    }

    /// Encodes a description, which has been checked.
    ///
    /// # Errors
    /// If the driver refuses it.
    fn tensor_map(&self, desc: &TensorMapDesc) -> Result<TensorMap>;

    /// Asks for something to be done.
    ///
    /// # Errors
    /// If it cannot be; what goes wrong while it is done comes out later.
    fn submit(&self, op: &Op) -> Result<()>;

    /// Records ops without doing them.
    ///
    /// # Errors
    /// If one cannot be recorded.
    fn capture(&self, ops: &[Op]) -> Result<Graph>;

    /// Asks for the recorded ops to be done.
    ///
    /// # Errors
    /// As [`Driver::submit`].
    fn replay(&self, graph: Graph) -> Result<()>;

    /// Frees a graph, which is replayed no more.
    fn discard(&self, graph: Graph);

    /// From now on what this thread asks for is done beside what others ask for, after all that has been asked for so far.
    /// Memory that is given back meanwhile may be in use on both sides: the caller keeps it until [`Driver::join`]. Drivers
    /// that cannot do it do everything in order.
    ///
    /// # Errors
    /// If the device has failed.
    fn fork(&self) -> Result<()> {
        Ok(())
    }

    /// Ends what [`Driver::fork`] began: what is asked for from now on, by any thread, comes after it.
    ///
    /// # Errors
    /// If the device has failed.
    fn join(&self) -> Result<()> {
        Ok(())
    }

    /// Gives the point that this thread's work has come to the number `mark`, for [`Driver::between`].
    ///
    /// # Errors
    /// If the device has failed.
    fn mark(&self, mark: usize) -> Result<()>;

    /// Seconds from one mark to a later one, once the work before both is done.
    ///
    /// # Errors
    /// If the device has failed, or there is no such mark.
    fn between(&self, from: usize, to: usize) -> Result<f64>;

    /// What a kernel takes, where a driver compiles it.
    ///
    /// # Errors
    /// If the device has failed.
    fn info(&self, _function: Function) -> Result<Option<FunctionInfo>> {
        Ok(None)
    }

    /// The handle of the stream that this thread's work goes to, where there is one: for libraries that bring kernels.
    fn stream(&self) -> Option<usize> {
        None
    }
}
