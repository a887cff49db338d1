use std::collections::BTreeMap;
use std::time::Instant;

/// Seconds per phase of something that goes through its phases again and again.
pub struct Clock {
    last: Instant,
    seconds: BTreeMap<&'static str, f64>,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Self { last: Instant::now(), seconds: BTreeMap::new() }
    }

    /// The time since the last lap belongs to `phase`.
    pub fn lap(&mut self, phase: &'static str) {
        *self.seconds.entry(phase).or_default() += self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
    }

    /// What has been counted.
    pub fn seconds(self) -> BTreeMap<&'static str, f64> {
        self.seconds
    }
}
