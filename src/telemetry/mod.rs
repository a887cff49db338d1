//! What long work says of itself.

mod progress;
mod stub;

pub use progress::Progress;
pub use stub::{Metrics, TensorBoard};
