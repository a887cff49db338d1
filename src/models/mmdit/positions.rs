//! Where a token lies in its image: a table for a large square, of which an image has the centre.

use super::Config;
use crate::device::Tensor;
use crate::io::Scope;
use crate::ops::position;

/// Larger than any model's `max·hidden`: the settings are damaged, and the table is missed.
const MOST_COMPUTED: usize = 1 << 26;

/// The positions of a square of tokens.
#[derive(Clone)]
pub(super) struct Positions {
    table: Table,
    /// The side of the square.
    max: usize,
}

/// A line of the table is a token's column and then its row, each as sines and then cosines.
#[derive(Clone)]
enum Table {
    /// `[max·max, hidden]`, from the file.
    Stored(Tensor),
    /// `[max, hidden/2]`, what a column or a row is.
    Computed(Vec<f32>),
}

impl Positions {
    /// The table of the file; where that has none, for it can be computed, what diffusers' `get_2d_sincos_pos_embed` gives.
    pub(super) fn load(scope: &Scope, config: &Config) -> Self {
        let (name, d, max) = ("pos_embed", config.hidden(), config.pos_embed_max_size);
        // Sines and cosines of columns and rows are four equal parts.
        let table = if scope.has(name) || !d.is_multiple_of(4) || max.saturating_mul(d) > MOST_COMPUTED {
            Table::Stored(scope.tensor(name, &[1, max * max, d]))
        } else {
            Table::Computed(axis(max, config.sample_size / config.patch_size, d / 2))
        };
        Self { table, max }
    }

    /// Adds to tokens `x` `[b, rows·cols, hidden]` their positions.
    pub(super) fn add(&self, x: &mut Tensor, (rows, cols): (usize, usize)) {
        let max = self.max;
        assert!(rows <= max && cols <= max, "latent of {rows}x{cols} tokens, table of {max}");
        let (top, left) = ((max - rows) / 2, (max - cols) / 2);
        match &self.table {
            Table::Stored(table) => {
                let starts: Vec<usize> = (0..rows).map(|y| (top + y) * max + left).collect();
                position::add(x, table, &starts);
            }
            Table::Computed(axis) => {
                let half = axis.len() / max;
                let at = |i: usize| &axis[i * half..(i + 1) * half];
                let lines = (top..top + rows).flat_map(|y| (left..left + cols).flat_map(move |x| [at(x), at(y)]));
                let table =
                    Tensor::from_slice(&x.device(), &lines.collect::<Vec<_>>().concat(), &[rows * cols, 2 * half]);
                position::add(x, &table, &[0]);
            }
        }
    }
}

/// The encodings `[max, width]` of `max` places, on which as many as `base` units lie evenly.
fn axis(max: usize, base: usize, width: usize) -> Vec<f32> {
    let frequencies: Vec<f64> = (0..width / 2).map(|i| 10_000f64.powf(-(2.0 * i as f64) / width as f64)).collect();
    let line = |i: usize| {
        // diffusers has places in single precision, and computes with them in double.
        let place = f64::from(i as f32 / (max as f64 / base as f64) as f32);
        let of = |f: fn(f64) -> f64| frequencies.iter().map(move |w| f(place * w) as f32);
        of(f64::sin).chain(of(f64::cos)).collect::<Vec<f32>>()
    };
    (0..max).flat_map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::device::{DType, Device};
    use crate::io::TensorFile;

    /// Both round the same numbers in double precision, whose last bits differ, to single precision.
    #[test]
    fn computed_positions_are_those_that_diffusers_stored() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in
            ["tests/fixtures/mmdit/sd3", "tests/fixtures/pipeline/no_t5/transformer", "models/tiny-sd3/transformer"]
        {
            let folder = root.join(folder);
            let config = Config::load(&folder).unwrap();
            let file = TensorFile::open_component(&folder, "diffusion_pytorch_model", None).unwrap();
            let stored = file.tensor("pos_embed.pos_embed", &Device::Cpu).unwrap();
            let (d, max) = (config.hidden(), config.pos_embed_max_size);
            let table = Table::Computed(axis(max, config.sample_size / config.patch_size, d / 2));
            let mut computed = Tensor::zeros(&Device::Cpu, &[1, max * max, d]);
            Positions { table, max }.add(&mut computed, (max, max));
            let one = if stored.dtype() == DType::F32 { f32::EPSILON } else { 1.0 / 256.0 };
            for (got, want) in computed.to_host().iter().zip(stored.to_host()) {
                assert!((got - want).abs() <= one * want.abs() + 1e-14, "{}: {got} {want}", folder.display());
            }
        }
    }
}
