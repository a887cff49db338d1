//! What long work says of itself, its phases timed by a [`Clock`]: [`Progress`] to the person who waits, [`Metrics`] to programs, [`TensorBoard`] to
//! that program.

mod clock;
mod metrics;
mod progress;
mod tensorboard;

pub use clock::Clock;
pub use metrics::Metrics;
pub use progress::Progress;
pub use tensorboard::TensorBoard;

pub use crate::device::{bytes, range};

/// Prints a line to stdout. That nobody reads it (`| head`, a full disk) is no reason to end a run.
pub fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a warning to stderr.
pub fn warn(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "warning: {line}");
}
