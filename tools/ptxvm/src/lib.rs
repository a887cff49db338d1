//! Runs NVIDIA PTX on the processor, and finds what a GPU would not tell: accesses out of bounds, memory and registers
//! that nobody wrote, races, missing fences, barriers and waits.
//!
//! ```
//! use ptxvm::{Arg, Config, Memory, Module, Options};
//!
//! let ptx = "
//! .version 8.4
//! .target sm_80
//! .address_size 64
//! .visible .entry twice(.param .u64 p) {
//!     .reg .b32 %r<3>;
//!     .reg .b64 %rd<4>;
//!     ld.param.u64 %rd1, [p];
//!     mov.u32 %r1, %tid.x;
//!     mul.wide.u32 %rd2, %r1, 4;
//!     add.s64 %rd3, %rd1, %rd2;
//!     ld.global.u32 %r2, [%rd3];
//!     shl.b32 %r2, %r2, 1;
//!     st.global.u32 [%rd3], %r2;
//!     ret;
//! }";
//! let module = Module::parse("twice.ptx", ptx)?;
//! let mut memory = Memory::new();
//! let p = memory.alloc_from(&[1, 0, 0, 0, 2, 0, 0, 0])?;
//! let config = Config { grid: [1, 1, 1], block: [2, 1, 1], shared: 0 };
//! let report = module.launch(&mut memory, "twice", &config, &[Arg::Ptr(p)], &Options::default())?;
//! assert!(report.findings.is_empty());
//! assert_eq!(memory.bytes(p, 8)?, [2, 0, 0, 0, 4, 0, 0, 0]);
//! # Ok::<(), ptxvm::Error>(())
//! ```
//!
//! A text goes through `lex`, `parse` and `decode` once; `exec` then runs whole warps, instruction by instruction, and
//! blocks on all processors. `shadow` keeps what orders accesses to shared memory.

mod decode;
mod error;
mod exec;
mod finding;
mod launch;
mod lex;
mod memory;
mod mutants;
mod numeric;
mod options;
mod parse;
mod program;
mod regs;
mod shadow;
mod shared;
mod stats;
mod tensor_map;
mod types;
mod watch;

pub use error::{Error, Result};
pub use finding::{Finding, Kind};
pub use launch::{Arg, Config, Module, Report};
pub use memory::{DevicePtr, Memory};
pub use mutants::{Mutant, mutants};
pub use options::{Options, Schedule};
pub use program::Slot;
pub use stats::Stats;
pub use tensor_map::{Number, TensorMap};
