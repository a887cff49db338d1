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

/// A number of bytes as a person reads it.
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}
