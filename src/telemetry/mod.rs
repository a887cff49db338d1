//! What long work says of itself.

mod progress;

pub use progress::Progress;
