use std::collections::BTreeMap;
use std::time::Instant;

/// Seconds per phase of something that goes through its phases again and again.
pub struct Clock {
    started: Instant,
    last: Instant,
    seconds: BTreeMap<&'static str, f64>,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, seconds: BTreeMap::new() }
    }

    /// The time since the last lap belongs to `phase`.
    pub fn lap(&mut self, phase: &'static str) {
        *self.seconds.entry(phase).or_default() += self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
    }

    /// Takes in what others have counted since the last lap, perhaps at the same time.
    pub fn add(&mut self, others: [Option<Self>; 2]) {
        for (phase, seconds) in others.into_iter().flatten().flat_map(|other| other.seconds) {
            *self.seconds.entry(phase).or_default() += seconds;
        }
        self.last = Instant::now();
    }

    /// Seconds since the start.
    pub fn total(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// What has been counted.
    pub fn seconds(self) -> BTreeMap<&'static str, f64> {
        self.seconds
    }
}
