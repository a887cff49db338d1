//! What long work says of itself, its phases timed by a [`Clock`]: [`Progress`] to the person who waits, [`Metrics`] to programs, [`TensorBoard`] to
//! that program.

mod clock;
mod metrics;
mod progress;
mod tensorboard;

use std::sync::atomic::{AtomicBool, Ordering};

pub use clock::Clock;
pub use metrics::Metrics;
pub use progress::Progress;
pub use tensorboard::TensorBoard;

pub use crate::device::{bytes, range};

/// Whether stdout is for an answer that a program reads.
static STDOUT_IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// From now on [`say`] prints to stderr: stdout is for an answer that a program reads.
pub fn take_stdout() {
    STDOUT_IS_TAKEN.store(true, Ordering::Relaxed);
}

/// Prints a line to stdout, or to stderr where stdout is [taken](take_stdout). That nobody reads it (`| head`, a full disk) is
/// no reason to end a run.
pub fn say(line: &str) {
    use std::io::Write;
    let _ = match STDOUT_IS_TAKEN.load(Ordering::Relaxed) {
        true => writeln!(std::io::stderr(), "{line}"),
        false => writeln!(std::io::stdout(), "{line}"),
    };
}

/// Prints a warning to stderr.
pub fn warn(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "warning: {line}");
}
