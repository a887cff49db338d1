//! What a run can find wrong with a kernel.

use std::fmt;

/// Kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An address outside of every allocation, variable or window.
    OutOfBounds,
    /// An address that is no multiple of what the access needs.
    Misaligned,
    /// Memory that was freed.
    UseAfterFree,
    /// Memory or a register that nobody wrote.
    Uninitialised,
    /// Accesses to shared memory, or by several blocks to global memory, that nothing orders.
    Race,
    /// Generic accesses and asynchronous ones without a fence between them, or without `fence.mbarrier_init`.
    Proxy,
    /// Registers of a `wgmma` touched before its wait, or without `wgmma.fence`.
    InFlight,
    /// Asynchronous work that is not committed or not waited for when a block ends.
    NotWaited,
    /// Lanes of a warp that do not meet where all must.
    Divergence,
    /// A barrier used in a way that has no meaning.
    Barrier,
    /// An mbarrier used in a way that has no meaning.
    Mbarrier,
    /// A write to what `ld.global.nc` reads in the same launch.
    ReadOnly,
    /// Every warp waits.
    Deadlock,
    /// A tensor map or a matrix descriptor that is none, or that no device takes.
    Descriptor,
    /// Division of integers by zero.
    Division,
    /// `trap`.
    Trap,
    /// More instructions than the launch allows.
    Endless,
}

impl Kind {
    /// The name in messages and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::OutOfBounds => "out-of-bounds",
            Kind::Misaligned => "misaligned",
            Kind::UseAfterFree => "use-after-free",
            Kind::Uninitialised => "uninitialised",
            Kind::Race => "race",
            Kind::Proxy => "proxy",
            Kind::InFlight => "in-flight",
            Kind::NotWaited => "not-waited",
            Kind::Divergence => "divergence",
            Kind::Barrier => "barrier",
            Kind::Mbarrier => "mbarrier",
            Kind::ReadOnly => "read-only",
            Kind::Deadlock => "deadlock",
            Kind::Descriptor => "descriptor",
            Kind::Division => "division",
            Kind::Trap => "trap",
            Kind::Endless => "endless",
        }
    }
}

/// One mistake, with its place. The block that made it stopped there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of mistake.
    pub kind: Kind,
    /// File of the PTX.
    pub file: String,
    /// Kernel.
    pub kernel: String,
    /// Line of the PTX.
    pub line: u32,
    /// The instruction with its modifiers.
    pub instruction: String,
    /// File and line of the source, where the PTX has `.loc`.
    pub source: Option<(String, u32)>,
    /// `%ctaid`.
    pub block: [u32; 3],
    /// Number of the thread in its block: of the lane at fault, or of the first lane that was there.
    pub thread: u32,
    /// Address, in the space the message names.
    pub address: Option<u64>,
    /// In words.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{}:{}: {}: {}: {}", self.file, self.line, self.kernel, self.kind.name(), self.message)?;
        if let Some(a) = self.address {
            write!(f, " at {a:#x}")?;
        }
        write!(f, " ({}, block {x},{y},{z}, thread {})", self.instruction, self.thread)?;
        if let Some((file, line)) = &self.source {
            write!(f, " [{file}:{line}]")?;
        }
        Ok(())
    }
}

/// A finding without its place, which the scheduler knows.
#[derive(Debug)]
pub(crate) struct Fault {
    pub kind: Kind,
    pub lane: Option<usize>,
    pub address: Option<u64>,
    pub message: String,
}

/// What an instruction gives, or the fault it makes.
pub(crate) type Step<T = ()> = Result<T, Box<Fault>>;

pub(crate) fn fault<T>(kind: Kind, message: impl Into<String>) -> Step<T> {
    Err(Box::new(Fault { kind, lane: None, address: None, message: message.into() }))
}

pub(crate) fn fault_at<T>(kind: Kind, lane: usize, address: u64, message: impl Into<String>) -> Step<T> {
    Err(Box::new(Fault { kind, lane: Some(lane), address: Some(address), message: message.into() }))
}
