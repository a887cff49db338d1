//! Numbers over epochs: thinned to what a screen shows, scaled to where they are drawn, written as a person reads them.

/// Points in the order of x; `None` where a value is missing.
pub type Points = Vec<(f64, Option<f64>)>;

/// What is drawn of many points.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Thinned {
    /// The points themselves, or means over stretches of them; a stretch without any value stays a gap.
    pub points: Points,
    /// The lowest and the highest value of each stretch, by its x, so that no spike is lost; empty if all points are there.
    pub band: Vec<(f64, Option<[f64; 2]>)>,
}

/// At most `most` points for `points`. They begin and end where those do.
pub fn thinned(points: &Points, most: usize) -> Thinned {
    if points.len() <= most {
        return Thinned { points: points.clone(), band: Vec::new() };
    }
    let (mut thin, count) = (Thinned::default(), most.max(1));
    for i in 0..count {
        let stretch = &points[i * points.len() / count..(i + 1) * points.len() / count];
        let x = match i {
            0 => stretch[0].0,
            i if i + 1 == count => stretch[stretch.len() - 1].0,
            _ => stretch[stretch.len() / 2].0,
        };
        let known = || stretch.iter().filter_map(|(_, y)| *y);
        let (low, high) = (known().reduce(f64::min), known().reduce(f64::max));
        let mean = low.map(|_| known().sum::<f64>() / known().count() as f64);
        thin.points.push((x, mean));
        thin.band.push((x, low.zip(high).map(|(low, high)| [low, high])));
    }
    thin
}

/// A range with round numbers in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// The lowest number that is shown.
    pub low: f64,
    /// The highest; more than `low`.
    pub high: f64,
    /// Round numbers from `low` to `high`.
    pub ticks: Vec<f64>,
}

impl Scale {
    /// A scale over `values` with about `count` ticks, that begins and ends at one of them if `is_round`.
    /// From 0 to 1 where there is no value.
    pub fn over(values: impl IntoIterator<Item = f64>, count: usize, is_round: bool) -> Self {
        let finite = values.into_iter().filter(|v| v.is_finite());
        let range = finite.fold(None, |range: Option<(f64, f64)>, v| {
            Some(range.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
        });
        let (mut low, mut high) = range.unwrap_or((0.0, 1.0));
        // A constant has room on both sides, more of it than its own rounding.
        if high - low <= low.abs().max(high.abs()) * 1e-9 {
            let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low, high) = (low - if low == 0.0 { 0.0 } else { room }, high + room);
        }
        let step = round_step((high - low) / count.max(1) as f64);
        if is_round {
            (low, high) = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
        }
        let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
        let ticks = (0..=(last - first).max(0.0) as usize).map(|i| (first + i as f64) * step).collect();
        Self { low, high, ticks }
    }

    /// Where `value` is, from 0 at `low` to 1 at `high`.
    pub fn at(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is not far below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let times = [1.0, 2.0, 5.0].into_iter().find(|times| times * power >= step * 0.75);
    times.unwrap_or(10.0) * power
}

/// `value` with `digits` significant digits, without zeros that say nothing; a power of ten where it is very large or small.
pub fn significant(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return "not finite".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let exponent = value.abs().log10().floor() as i32;
    if !(-4..9).contains(&exponent) {
        let text = format!("{value:.*e}", digits.saturating_sub(1));
        let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
        return minus(&format!("{}e{power}", without_zeros(mantissa)));
    }
    let decimals = usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0);
    minus(&grouped(without_zeros(&format!("{value:.decimals$}"))))
}

/// The way numbers are written here: four digits.
pub fn written(value: f64) -> String {
    significant(value, 4)
}

/// Minus as a sign of its own width instead of a hyphen.
fn minus(text: &str) -> String {
    text.replace('-', "\u{2212}")
}

fn without_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// Thousands set apart from five digits on.
fn grouped(text: &str) -> String {
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, digits) = whole.split_at(usize::from(whole.starts_with('-')));
    if digits.len() < 5 {
        return text.into();
    }
    let head = digits.len() % 3;
    let groups = digits.as_bytes()[head..].chunks(3).map(|c| String::from_utf8_lossy(c).into_owned());
    let parts: Vec<String> = (head > 0).then(|| digits[..head].to_string()).into_iter().chain(groups).collect();
    format!("{sign}{}{rest}", parts.join("\u{202f}"))
}

/// Seconds as a person says them.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{} s", significant(seconds, 3)),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_ends_means_spikes_and_gaps() {
        let value = |i: usize| match i {
            4000..5000 => None,
            7777 => Some(100.0),
            8888 => Some(-100.0),
            i => Some((i % 2) as f64),
        };
        let points: Points = (0..10_001).map(|i| (i as f64, value(i))).collect();
        let Thinned { points: thin, band } = thinned(&points, 200);
        assert_eq!((thin.len(), band.len()), (200, 200));
        assert!(thin.windows(2).all(|w| w[0].0 < w[1].0));
        assert_eq!((thin[0].0, thin[thin.len() - 1].0), (0.0, 10_000.0));
        assert!(thin.iter().any(|(_, y)| y.is_none()) && thin[1].1.is_some_and(|y| (y - 0.5).abs() < 0.02));
        let ends = band.iter().filter_map(|(_, ends)| *ends);
        let ends = ends.reduce(|a, b| [a[0].min(b[0]), a[1].max(b[1])]);
        assert_eq!(ends, Some([-100.0, 100.0]));
        let few = points[..200].to_vec();
        assert_eq!(thinned(&few, 200), Thinned { points: few, band: Vec::new() });
        assert_eq!(thinned(&Vec::new(), 4), Thinned::default());
    }

    #[test]
    fn scales_are_round_and_hold_all_values() {
        let scale = Scale::over([0.43, 0.551, f64::NAN], 4, true);
        assert_eq!(scale.ticks.iter().map(|t| written(*t)).collect::<Vec<_>>(), ["0.4", "0.45", "0.5", "0.55", "0.6"]);
        assert_eq!((scale.low, scale.at(scale.low), scale.at(scale.high)), (0.4, 0.0, 1.0));
        let exact = Scale::over([3.0, 97.0], 4, false);
        assert_eq!((exact.low, exact.high, exact.ticks), (3.0, 97.0, vec![20.0, 40.0, 60.0, 80.0]));
        for values in
            [vec![], vec![0.0], vec![-7.5, -7.5], vec![1e-30, 3e-30], vec![-1e300, 1e300], vec![1e9, 1e9 + 1.0]]
        {
            let scale = Scale::over(values.clone(), 5, true);
            assert!(scale.low < scale.high && (2..=12).contains(&scale.ticks.len()), "{values:?}: {scale:?}");
            assert!(values.iter().all(|v| (0.0..=1.0).contains(&scale.at(*v))), "{values:?}: {scale:?}");
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (0.44516, "0.4452"),
            (-3.25, "\u{2212}3.25"),
            (1234.0, "1234"),
            (49_152.0, "49\u{202f}152"),
            (1_234_567.0, "1\u{202f}234\u{202f}567"),
            (2.5e-7, "2.5e\u{2212}7"),
            (1e12, "1e12"),
            (f64::NAN, "not finite"),
        ] {
            assert_eq!(written(value), text);
        }
        let durations = [0.25, 59.0, 61.0, 3599.9, 7322.0].map(duration);
        assert_eq!(durations, ["0.25 s", "59 s", "1 min 01 s", "1 h 00 min", "2 h 02 min"]);
    }
}
