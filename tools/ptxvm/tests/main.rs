//! One integration binary: probe kernels against references in f64, single instructions against values worked out from
//! the ISA, planted mistakes against what must be found, and the command line.

mod cli;
mod findings;
mod isa;
mod large;
mod mutants;
mod noise;
mod probes;
mod wgmma;
