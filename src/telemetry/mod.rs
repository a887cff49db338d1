//! What long work says of itself: [`Progress`] to the person who waits, [`Metrics`] to programs, [`TensorBoard`] to
//! that program.

mod metrics;
mod progress;
mod tensorboard;

pub use metrics::Metrics;
pub use progress::Progress;
pub use tensorboard::TensorBoard;
