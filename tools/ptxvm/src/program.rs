//! A kernel as it is executed: registers are rows, labels are places in the code, names are gone.

use crate::regs::{Apply, Reg};
use crate::types::{Space, Type};

/// A decoded kernel.
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Slot>,
    /// Bytes of the parameters.
    pub param_bytes: u32,
    /// The code; running past its end is an exit.
    pub code: Vec<Inst>,
    /// Rows per register file.
    pub rows: [usize; 3],
    /// Rows that hold the same bits in every lane.
    pub constants: Vec<(Reg, u64)>,
    /// Rows that hold what a launch, a block or a lane is.
    pub specials: Vec<(Reg, Special)>,
    /// Static shared variables: first byte and the byte after the last, in order.
    pub statics: Vec<(u32, u32)>,
    /// Alignment of dynamic shared memory, if any is declared.
    pub dynamic_align: u32,
    /// Bytes of local memory of a thread.
    pub local_bytes: u32,
    /// `.maxntid`.
    pub max_threads: u32,
    /// `.reqntid`.
    pub threads: Option<[u32; 3]>,
    /// Whether registers must be watched for `wgmma`.
    pub has_wgmma: bool,
    /// Whether it has `ld.global.nc`, so that writes are watched.
    pub has_nc: bool,
}

/// A parameter of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// First byte.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
}

/// What a row is filled with when a warp starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Lane,
    Warp,
    Warps,
    /// The same everywhere: a cluster is one block.
    Fixed(u32),
    LaneMask(Lanes),
    /// The start of dynamic shared memory.
    Dynamic,
    /// The address of a variable of the module.
    Variable(u32),
}

/// `%lanemask_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Lanes {
    Eq,
    Le,
    Lt,
    Ge,
    Gt,
}

/// One instruction.
pub struct Inst {
    /// What it does.
    pub exec: Exec,
    /// `@p`: row of the predicate, and whether it is negated.
    pub guard: Option<(u32, bool)>,
    /// Line of the PTX.
    pub line: u32,
    /// `.loc` in force: file index and line, 0 if none.
    pub place: (u32, u32),
    /// Registers it reads.
    pub reads: Box<[Reg]>,
    /// Registers it writes.
    pub writes: Box<[Reg]>,
    /// As written.
    pub name: Box<str>,
}

/// `[base + offset]`.
#[derive(Debug, Clone, Copy)]
pub struct Address {
    /// 32 or 64 bits.
    pub base: Reg,
    /// In bytes.
    pub offset: i64,
}

/// Atomic operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Rmw {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Inc,
    Dec,
    Exch,
    Cas,
}

impl Rmw {
    /// What a modifier names.
    pub(crate) fn named(modifier: &str) -> Option<Self> {
        Some(match modifier {
            "add" => Self::Add,
            "min" => Self::Min,
            "max" => Self::Max,
            "and" => Self::And,
            "or" => Self::Or,
            "xor" => Self::Xor,
            "inc" => Self::Inc,
            "dec" => Self::Dec,
            "exch" => Self::Exch,
            "cas" => Self::Cas,
            _ => return None,
        })
    }

    /// Whether `redux` has it too.
    pub(crate) fn has_redux(self) -> bool {
        !matches!(self, Self::Inc | Self::Dec | Self::Exch | Self::Cas)
    }
}

/// Modes of `shfl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// Modes of `vote` and of `bar.red`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Vote {
    All,
    Any,
    Uni,
    Ballot,
    Popc,
}

/// What an access says of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strength {
    /// Nothing.
    Weak,
    /// `.nc`: nobody writes there.
    Constant,
    /// `.relaxed`, `.volatile`: others may access it at the same time.
    Relaxed,
    /// `.acquire` and `.release`.
    Ordered,
}

/// Fences that the checker tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// `membar`, `fence.acq_rel`, `fence.sc`.
    Memory,
    /// `fence.proxy.async`.
    Proxy,
    /// `fence.mbarrier_init`.
    MbarrierInit,
}

/// `mbarrier.*`.
#[derive(Debug, Clone, Copy)]
pub enum Mbarrier {
    /// `init`: the expected count.
    Init(Reg),
    /// `inval`.
    Invalidate,
    /// `arrive`, `arrive.expect_tx`: count, bytes.
    Arrive(Option<Reg>, Option<Reg>),
    /// `expect_tx`: bytes.
    ExpectTx(Reg),
    /// `try_wait.parity` and `test_wait.parity`: result, parity; whether it may sleep.
    Wait(Reg, Reg, bool),
}

/// Element types of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Elem {
    Bf16,
    F16,
    Tf32,
    /// Bytes: signed or not of A and of B.
    Int([bool; 2]),
    /// Bytes: E5M2 instead of E4M3 of A and of B.
    Fp8([bool; 2]),
}

/// `mma.sync`: shape m16n8, k and types.
#[derive(Debug, Clone)]
pub struct Mma {
    /// 8 or 16 (4 or 8 for tf32, 16 or 32 for bytes).
    pub k: u8,
    /// Type of A and B.
    pub elem: Elem,
    /// Accumulators in f16 instead of f32.
    pub half: bool,
    /// `.satfinite` of s32.
    pub saturates: bool,
    /// D, A, B, C.
    pub regs: [Box<[Reg]>; 4],
}

/// `wgmma.mma_async`, m64nNk16, f32 accumulators.
#[derive(Debug, Clone)]
pub struct Wgmma {
    /// Columns.
    pub n: u16,
    /// Depth: 32 bytes of elements.
    pub k: u8,
    /// Type of A and B.
    pub elem: Elem,
    /// Accumulators.
    pub d: Box<[Reg]>,
    /// A in registers, or none.
    pub a: Option<[Reg; 4]>,
    /// Descriptor of A where it is in shared memory.
    pub a_desc: Option<Reg>,
    /// Descriptor of B.
    pub b_desc: Reg,
    /// Predicate: the accumulators are added to.
    pub scale_d: Reg,
    /// Signs of A and B.
    pub signs: [f32; 2],
    /// M-major A, N-major B.
    pub trans: [bool; 2],
}

/// What an instruction does.
#[allow(missing_docs)]
pub enum Exec {
    /// Arithmetic of lanes.
    Alu(Apply),
    /// The same, refused where the divisor is zero.
    Divide(Apply, Reg),
    /// The same, refused where the rank is of another block than the only one of a cluster.
    Mapa(Apply, Reg),
    Branch(u32),
    Exit,
    Trap,
    Nop,
    Load {
        space: Space,
        ty: Type,
        dst: Box<[Reg]>,
        from: Address,
        order: Strength,
    },
    Store {
        space: Space,
        ty: Type,
        src: Box<[Reg]>,
        to: Address,
        order: Strength,
    },
    Atom {
        space: Space,
        ty: Type,
        op: Rmw,
        release: bool,
        dst: Option<Reg>,
        to: Address,
        a: Reg,
        b: Option<Reg>,
    },
    Bar {
        id: Reg,
        threads: Option<Reg>,
        arrive: bool,
        red: Option<(Vote, Reg, Reg, bool)>,
    },
    /// `barrier.cluster.wait`, all warps of the only block.
    ClusterWait,
    WarpSync(Reg),
    Shfl {
        mode: Shuffle,
        dst: Reg,
        pred: Option<Reg>,
        src: Reg,
        b: Reg,
        c: Reg,
        mask: Reg,
    },
    Vote {
        mode: Vote,
        dst: Reg,
        src: Reg,
        negated: bool,
        /// None: the lanes that are there.
        mask: Option<Reg>,
    },
    Match {
        all: bool,
        dst: Reg,
        pred: Option<Reg>,
        src: Reg,
        mask: Reg,
    },
    Redux {
        op: Rmw,
        signed: bool,
        dst: Reg,
        src: Reg,
        mask: Reg,
    },
    Elect {
        dst: Option<Reg>,
        pred: Reg,
        mask: Reg,
    },
    ActiveMask(Reg),
    LdMatrix {
        space: Space,
        trans: bool,
        dst: Box<[Reg]>,
        from: Address,
    },
    StMatrix {
        space: Space,
        trans: bool,
        src: Box<[Reg]>,
        to: Address,
    },
    Mma(Mma),
    CpAsync {
        bytes: u32,
        to: Address,
        from: Address,
        size: Option<Reg>,
    },
    CpCommit,
    /// All but the newest so many groups; every copy, committed or not, if none.
    CpWait(Option<u32>),
    Mbarrier {
        op: Mbarrier,
        at: Address,
    },
    Fence(Fence),
    PrefetchMap(Address),
    TensorLoad {
        to: Address,
        map: Address,
        at: Box<[Reg]>,
        bar: Address,
    },
    TensorStore {
        from: Address,
        map: Address,
        at: Box<[Reg]>,
    },
    BulkLoad {
        to: Address,
        from: Address,
        bytes: Reg,
        bar: Address,
    },
    BulkStore {
        to: Address,
        from: Address,
        bytes: Reg,
    },
    /// `cp.reduce.async.bulk`: a store that combines.
    BulkReduce {
        op: Rmw,
        ty: Type,
        to: Address,
        from: Address,
        bytes: Reg,
    },
    /// `cp.reduce.async.bulk.tensor`: the map says of what type.
    TensorReduce {
        op: Rmw,
        from: Address,
        map: Address,
        at: Box<[Reg]>,
    },
    /// `cp.async.mbarrier.arrive`: when the thread's copies are done; whether the count grows first.
    CpArrive {
        at: Address,
        noinc: bool,
    },
    BulkCommit,
    BulkWait {
        newest: u32,
        read: bool,
    },
    Wgmma(Box<Wgmma>),
    WgFence,
    WgCommit,
    WgWait(u32),
    SetMaxReg {
        inc: bool,
        n: u32,
    },
}
