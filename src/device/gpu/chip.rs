//! What is known of GPUs that may not be there: what plans and predictions are made for.

use super::Facts;

/// A chip as its maker describes it.
#[derive(Debug, PartialEq)]
pub struct Chip {
    /// What `--device plan:` calls it.
    pub name: &'static str,
    /// Its full name.
    pub title: &'static str,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub processors: u32,
    /// Bytes of memory that a process finds, in GiB: some less than the name says.
    gib: u64,
    /// Dense bf16 or f16 products, TFLOP/s.
    half: f64,
    /// Of f32 operands rounded to tf32.
    pub tf32: f64,
    /// Of fp8, where there is such.
    pub fp8: Option<f64>,
    /// f32 without matrix units.
    single: f64,
    /// Memory, TB/s.
    terabytes: f64,
    /// FLOPs of half precision in a clock of a processor: with the peak, this gives the clock that the peak is for.
    pub half_per_clock: f64,
    /// f32 lanes of a processor.
    pub lanes: f64,
}

/// ex2 in a clock of a processor, on all of these (CUDA C++ Programming Guide, throughput of native arithmetic).
pub const EXPS_PER_CLOCK: f64 = 16.0;

/// Peaks and bandwidths are NVIDIA's data sheets' (H100 SXM5, H200 SXM, A100 SXM4); figures per clock, its white papers'.
pub const CHIPS: [Chip; 4] = [
    Chip {
        name: "h100",
        title: "H100 SXM 80 GB",
        capability: (9, 0),
        processors: 132,
        gib: 79,
        half: 989.4,
        tf32: 494.7,
        fp8: Some(1978.9),
        single: 66.9,
        terabytes: 3.35,
        half_per_clock: 4096.0,
        lanes: 128.0,
    },
    Chip {
        name: "h200",
        title: "H200 SXM 141 GB",
        capability: (9, 0),
        processors: 132,
        gib: 139,
        half: 989.4,
        tf32: 494.7,
        fp8: Some(1978.9),
        single: 66.9,
        terabytes: 4.8,
        half_per_clock: 4096.0,
        lanes: 128.0,
    },
    Chip {
        name: "a100",
        title: "A100 SXM 80 GB",
        capability: (8, 0),
        processors: 108,
        gib: 79,
        half: 312.0,
        tf32: 156.0,
        fp8: None,
        single: 19.5,
        terabytes: 2.039,
        half_per_clock: 2048.0,
        lanes: 64.0,
    },
    Chip {
        name: "a100-40gb",
        title: "A100 SXM 40 GB",
        capability: (8, 0),
        processors: 108,
        gib: 39,
        half: 312.0,
        tf32: 156.0,
        fp8: None,
        single: 19.5,
        terabytes: 1.555,
        half_per_clock: 2048.0,
        lanes: 64.0,
    },
];

impl Chip {
    /// The chip of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        CHIPS.iter().find(|chip| chip.name == name)
    }

    /// What a driver would say of it.
    pub(super) fn facts(&self) -> Facts {
        Facts {
            name: format!("{} (planned)", self.title),
            capability: self.capability,
            processors: self.processors,
            memory: self.gib << 30,
        }
    }

    /// FLOP/s of products in half precision.
    pub fn half(&self) -> f64 {
        self.half * 1e12
    }

    /// FLOP/s of f32 without matrix units.
    pub fn single(&self) -> f64 {
        self.single * 1e12
    }

    /// Bytes of memory in a second.
    pub fn bandwidth(&self) -> f64 {
        self.terabytes * 1e12
    }

    /// Clocks in a second, at the peak.
    pub fn clock(&self) -> f64 {
        self.half() / f64::from(self.processors) / self.half_per_clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_the_peaks_is_the_boost_clock_of_the_data_sheets() {
        for (name, mhz) in [("h100", 1830.0), ("h200", 1830.0), ("a100", 1410.0), ("a100-40gb", 1410.0)] {
            let chip = Chip::named(name).unwrap();
            assert!((chip.clock() / 1e6 / mhz - 1.0).abs() < 0.002, "{name}: {}", chip.clock());
            // The other peaks are of the same clock.
            let single = 2.0 * chip.lanes * f64::from(chip.processors) * chip.clock();
            assert!((chip.single() / single - 1.0).abs() < 0.09, "{name}: {single}");
        }
    }
}
