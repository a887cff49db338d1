use std::ops::Range;

/// How neighbours are weighted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Linear between two, or over a wider triangle when shrinking (torchvision's bilinear, antialiased).
    Linear,
    /// Keys' cubic with a = -0.5, widened when shrinking (torchvision's bicubic, antialiased; Pillow's).
    Cubic,
    /// Keys' cubic with a = -0.75 over four neighbours, whatever the scale (torch's `interpolate` without antialiasing).
    SharpCubic,
}

/// What makes the entries of an axis out of those of another: a sparse matrix, whose rows are runs of neighbours.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    from: usize,
    pub(super) taps: Vec<Taps>,
}

/// The inputs of one output, from `first` on, and their weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Taps {
    pub first: usize,
    pub weights: Vec<f32>,
}

impl Axis {
    /// `from` entries as `to`.
    pub fn resized(from: usize, to: usize, filter: Filter) -> Self {
        let runs = match filter {
            Filter::Linear => antialiased(from, to, 1.0, |x| (1.0 - x.abs()).max(0.0)),
            Filter::Cubic => antialiased(from, to, 2.0, |x| cubic(x, -0.5)),
            Filter::SharpCubic => sharp(from, to),
        };
        let taps = runs
            .into_iter()
            .map(|(first, weights)| Taps { first, weights: weights.into_iter().map(|w| w as f32).collect() });
        Self { from, taps: taps.collect() }
    }

    /// The entries as they are.
    pub fn same(length: usize) -> Self {
        Self { from: length, taps: (0..length).map(|first| Taps { first, weights: vec![1.0] }).collect() }
    }

    /// How many entries there are before.
    pub fn from(&self) -> usize {
        self.from
    }

    /// How many there are after.
    pub fn to(&self) -> usize {
        self.taps.len()
    }

    /// Only the results `range`.
    pub fn cropped(mut self, range: Range<usize>) -> Self {
        self.taps = self.taps.drain(range).collect();
        self
    }

    /// With so many zeros before and after the results.
    pub fn padded(mut self, before: usize, after: usize) -> Self {
        self.taps.splice(0..0, std::iter::repeat_n(Taps::default(), before));
        self.taps.extend(std::iter::repeat_n(Taps::default(), after));
        self
    }

    /// The transposed matrix.
    pub fn transposed(&self) -> Self {
        let mut taps = vec![Taps::default(); self.from];
        for (output, t) in self.taps.iter().enumerate() {
            for (weight, of) in t.weights.iter().zip(&mut taps[t.first..]) {
                if of.weights.is_empty() {
                    of.first = output;
                }
                of.weights.resize(output - of.first, 0.0);
                of.weights.push(*weight);
            }
        }
        Self { from: self.to(), taps }
    }
}

/// The inputs of each of `to` outputs and their weights, which sum to 1: `kernel`, zero beyond `reach`, around the output's
/// centre, stretched when shrinking (`libImaging/Resample.c`).
pub(in crate::ops) fn antialiased(
    from: usize,
    to: usize,
    reach: f64,
    kernel: impl Fn(f64) -> f64,
) -> Vec<(usize, Vec<f64>)> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let reach = reach * stretch;
    let of = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = ((centre - reach + 0.5) as i64).max(0) as usize;
        let last = ((centre + reach + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..last).map(|x| kernel((x as f64 - centre + 0.5) / stretch)).collect();
        let sum: f64 = weights.iter().sum();
        (first, weights.into_iter().map(|w| w / sum).collect())
    };
    (0..to).map(of).collect()
}

/// [`Filter::SharpCubic`]: neighbours beyond an end are those at the end.
fn sharp(from: usize, to: usize) -> Vec<(usize, Vec<f64>)> {
    let of = |i: usize| {
        let at = (i as f64 + 0.5) * (from as f64 / to as f64) - 0.5;
        let floor = at.floor();
        let inside = |offset: i64| (floor as i64 + offset).clamp(0, from as i64 - 1) as usize;
        let (first, last) = (inside(-1), inside(2));
        let mut weights = vec![0.0; last - first + 1];
        for offset in -1..=2 {
            weights[inside(offset) - first] += cubic(at - floor - offset as f64, -0.75);
        }
        (first, weights)
    };
    (0..to).map(of).collect()
}

/// Keys' cubic.
pub(in crate::ops) fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}
