//! What this machine can do, measured: products, attention, passes of a network; and what a run would take at these rates.

pub mod cost;
pub mod machine;
pub mod measured;
pub mod passes;
pub mod peak;
