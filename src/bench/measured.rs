//! One thing that was timed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::device::Device;

/// More repetitions make a median no better.
const MOST: usize = 25;
/// With fewer, a measurement may take twice its time.
const SEVERAL: usize = 3;

/// How long something took.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What it was.
    pub name: String,
    /// FLOPs of its matrix products, two per multiply-add.
    pub flops: u64,
    /// Median of the repetitions, in seconds.
    pub seconds: f64,
    /// How many there were, the first aside, which is not counted.
    pub repetitions: usize,
}

impl Measured {
    /// Repeats `f`, which takes `flops` on `device`, for about as long as `budget` is, once at least.
    pub fn of<T>(name: String, flops: u64, device: &Device, budget: Duration, mut f: impl FnMut() -> T) -> Self {
        let mut once = || {
            let start = Instant::now();
            f();
            // Waits; what has failed is found out by whoever comes next.
            let _ = device.check();
            start.elapsed().as_secs_f64()
        };
        let begin = Instant::now();
        once();
        let mut seconds = vec![once()];
        let is_due = |taken: usize| {
            let elapsed = begin.elapsed();
            elapsed < budget || taken < SEVERAL && elapsed < 2 * budget
        };
        while seconds.len() < MOST && is_due(seconds.len()) {
            seconds.push(once());
        }
        seconds.sort_by(f64::total_cmp);
        let repetitions = seconds.len();
        Self { name, flops, seconds: seconds[repetitions / 2].max(f64::MIN_POSITIVE), repetitions }
    }

    /// FLOP/s.
    pub fn rate(&self) -> f64 {
        self.flops as f64 / self.seconds
    }

    /// As an object, with what share of `peak` it reached.
    pub fn json(&self, peak: f64) -> Value {
        json!({
            "name": self.name,
            "flops": self.flops,
            "seconds": self.seconds,
            "repetitions": self.repetitions,
            "flops_per_second": self.rate(),
            "share_of_peak": self.rate() / peak,
        })
    }

    /// As a line for people.
    pub fn line(&self, peak: f64) -> String {
        let Self { name, seconds, repetitions, .. } = self;
        let (ms, rate) = (1e3 * seconds, self.rate() / 1e9);
        format!("  {name:<52} {ms:>9.2} ms {rate:>8.1} GFLOP/s {:>4.0} %  ({repetitions})", 100.0 * rate * 1e9 / peak)
    }
}
