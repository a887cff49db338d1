//! What long work says of itself: [`Progress`] to the person who waits, [`Metrics`] to programs, [`TensorBoard`] to
//! that program.

mod metrics;
mod progress;
mod tensorboard;

pub use metrics::Metrics;
pub use progress::Progress;
pub use tensorboard::TensorBoard;

use crate::models::text::Truncated;

/// Prints a line to stdout. That nobody reads it (`| head`, a full disk) is no reason to end a run.
pub fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Warns on stderr about prompts that an encoder does not see whole: one of them, and how many there are.
pub fn warn_truncated(truncated: &[Truncated]) {
    use std::io::Write;
    let Some(first) = truncated.first() else { return };
    let more = match truncated.len() - 1 {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    let line = format!(
        "warning: {:?} is longer than {} takes: the last {} tokens are not seen{more}",
        first.prompt, first.encoder, first.dropped
    );
    let _ = writeln!(std::io::stderr(), "{line}");
}
