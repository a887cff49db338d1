//! The clipped surrogate of PPO (Schulman et al. 2017, eq. 7).

/// How far a ratio may be from 1 and still count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// Below 1.
    pub low: f64,
    /// Above 1.
    pub high: f64,
}

/// The surrogate at one ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Surrogate {
    /// `max(−A·ρ, −A·clip(ρ, 1 − low, 1 + high))`.
    pub value: f64,
    /// Its slope over `ln ρ`: `−A·ρ` where nothing is clipped, bounds included, else 0.
    pub slope: f64,
}

impl Clip {
    /// Of advantage `a` at the ratio `exp(log_ratio)`.
    pub fn surrogate(self, a: f64, log_ratio: f64) -> Surrogate {
        let ratio = log_ratio.exp();
        let value = (-a * ratio).max(-a * ratio.clamp(1.0 - self.low, 1.0 + self.high));
        let open = (a > 0.0 && ratio <= 1.0 + self.high) || (a < 0.0 && ratio >= 1.0 - self.low);
        Surrogate { value, slope: if open { -a * ratio } else { 0.0 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: Clip = Clip { low: 0.2, high: 0.3 };

    /// What autograd makes of maximum and clamp: bounds count as open, an advantage of 0 as nothing.
    #[test]
    fn clipping_stops_what_would_go_further_and_nothing_else() {
        let at = |a: f64, ratio: f64| CLIP.surrogate(a, ratio.ln());
        assert_eq!(CLIP.surrogate(2.0, 0.0), Surrogate { value: -2.0, slope: -2.0 });
        assert_eq!(at(1.0, 1.5), Surrogate { value: -1.3, slope: 0.0 });
        assert!(at(1.0, 0.5).slope < 0.0, "a good image that became unlikely is brought back");
        assert_eq!(at(-1.0, 0.5), Surrogate { value: 0.8, slope: 0.0 });
        assert!(at(-1.0, 1.5).slope > 1.0);
        assert_eq!(at(0.0, 1.1).slope, 0.0);
        let low = Clip { low: 0.5, high: 1.0 };
        assert_eq!(low.surrogate(1.0, 2f64.ln()).slope, -2.0);
        assert_eq!(low.surrogate(-1.0, 0.5f64.ln()).slope, 0.5);
    }
}
