use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Seconds between two lines in a log.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress of one piece of work on stderr: a bar with an ETA on a terminal, a plain line now and then in a log.
pub struct Progress {
    what: &'static str,
    total: u64,
    kind: Kind,
}

enum Kind {
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

struct Lines {
    done: u64,
    started: Instant,
    last: Instant,
}

impl Progress {
    /// Begins `what`, which takes `total` steps.
    pub fn new(what: &'static str, total: u64) -> Self {
        let now = Instant::now();
        let kind = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{prefix:>12} {bar:40} {pos}/{len} {per_sec} ETA {eta}");
            let style = style.expect("the template is valid");
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            Kind::Bar(bar.with_style(style).with_prefix(what))
        } else {
            Kind::Lines(Mutex::new(Lines { done: 0, started: now, last: now }))
        };
        Self { what, total, kind }
    }

    /// `n` more steps are done.
    pub fn step(&self, n: u64) {
        match &self.kind {
            Kind::Bar(bar) => bar.inc(n),
            Kind::Lines(lines) => {
                let mut lines = lines.lock().expect("nothing panics while holding it");
                lines.done += n;
                if lines.last.elapsed() >= LINE_EVERY && lines.done < self.total {
                    lines.last = Instant::now();
                    let per_step = lines.started.elapsed().as_secs_f64() / lines.done as f64;
                    let left = per_step * (self.total - lines.done) as f64;
                    let line = format!("{}: {}/{}, {left:.0} s left", self.what, lines.done, self.total);
                    let _ = writeln!(std::io::stderr(), "{line}");
                }
            }
        }
    }

    /// The work is done; a bar disappears.
    pub fn finish(self) {
        if let Kind::Bar(bar) = self.kind {
            bar.finish_and_clear();
        }
    }
}
