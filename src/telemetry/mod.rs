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

/// A number with three digits or four and the prefix of its unit, such as `1.23 G`.
pub fn si(value: f64) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P", "E"];
    let power = if value.abs() < 1.0 { 0 } else { (value.abs().log10() / 3.0) as usize }.min(prefixes.len() - 1);
    let scaled = value / 1000f64.powi(power as i32);
    let digits = if scaled.abs() >= 100.0 {
        0
    } else if scaled.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.digits$} {}", prefixes[power])
}

/// Hours and minutes, or minutes and seconds.
pub fn clock(seconds: f64) -> String {
    let s = std::time::Duration::from_secs_f64(seconds.max(0.0)).as_secs();
    if s >= 3600 { format!("{}h{:02}m", s / 3600, s / 60 % 60) } else { format!("{}m{:02}s", s / 60, s % 60) }
}

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

#[cfg(test)]
mod tests {
    use super::si;

    #[test]
    fn numbers_have_three_digits_and_a_prefix() {
        let values = [0.0, 0.5, 999.4, 1e3, 12_345.0, 2.26e11, 1.932e17, 5e20];
        let want = ["0.00 ", "0.50 ", "999 ", "1.00 k", "12.3 k", "226 G", "193 P", "500 E"];
        assert_eq!(values.map(si), want);
    }
}
