//! Training: the optimiser, averages of the policy, and the state that survives a crash.

pub mod ema;
pub mod optimizer;
