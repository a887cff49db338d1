//! Where numbers live: [`Tensor`] (activations), [`Weight`] (frozen parameters in mapped files), the
//! buffer pool behind them, and the counter-based generator [`philox`].

pub mod philox;
mod pool;
mod tensor;
mod weight;

pub use pool::{PoolStats, stats as pool_stats};
pub use tensor::Tensor;
pub use weight::{DType, Elems, Weight};

/// Runs `f` on `threads` worker threads (0 = one per core). Results never depend on the number.
///
/// # Errors
/// If the threads cannot be started.
pub fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build()?.install(f))
}
