//! Quantiles of the beta distribution B(0.6, 0.6).

/// Both parameters of the distribution.
const A: f64 = 0.6;

/// `∫ t^(A−1)·(1−t)^(A−1) dt` from 0 to `x`, which is at most a half: there each term of the series is less than half of
/// the one before.
fn integral(x: f64) -> f64 {
    let (mut sum, mut coefficient) = (0.0, 1.0);
    for n in 0..60 {
        let n = f64::from(n);
        sum += coefficient / (A + n);
        coefficient *= x * (1.0 - A + n) / (n + 1.0);
    }
    x.powf(A) * sum
}

/// Where the distribution function is `p`.
pub(super) fn quantile(p: f64) -> f64 {
    // The density is symmetric around a half.
    if p > 0.5 {
        return 1.0 - quantile(1.0 - p);
    }
    // Halves of the interval down to the spacing of f64 next to the root, however small that is.
    let (wanted, mut low, mut high) = (p * 2.0 * integral(0.5), 0.0, 0.5);
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return high * f64::from(u8::from(p > 0.0));
        }
        if integral(middle) < wanted { low = middle } else { high = middle }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `scipy.stats.beta.ppf`.
    #[test]
    fn quantiles_are_those_of_scipy() {
        let wanted = [
            (0.0, 0.0),
            (1e-4, 3.998_377_158_137_721e-7),
            (0.01, 8.612_388_215_429_059e-4),
            (0.1, 0.039_584_405_588_780_85),
            (0.37, 0.322_794_002_097_361_5),
            (0.5, 0.5),
            (0.9, 0.960_415_594_411_219_2),
            (1.0, 1.0),
        ];
        for (p, want) in wanted {
            assert!((quantile(p) - want).abs() <= 4e-15 * want, "{p}: {}", quantile(p));
        }
    }
}
