//! Five linear layers with nothing but dropout between them while they were trained: what the aesthetic predictor and ImageReward
//! end in.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::similarity::dot;
use crate::device::Device;
use crate::io::TensorFile;

/// The layers, first to last.
pub(super) const LAYERS: [&str; 5] = ["layers.0", "layers.2", "layers.4", "layers.6", "layers.7"];

/// What the layers amount to: `weight · x + bias`.
#[derive(Debug)]
pub(super) struct Head {
    pub weight: Vec<f64>,
    pub bias: f64,
}

impl Head {
    /// The head that the file at `path` consists of.
    ///
    /// # Errors
    /// As [`Head::of`], also if there is anything else in the file.
    pub fn load(path: &Path) -> Result<Self> {
        ensure!(path.is_file(), "{}: no such file", path.display());
        let file = TensorFile::open(path)?;
        let known = |name: &str| name.rsplit_once('.').is_some_and(|(layer, _)| LAYERS.contains(&layer));
        if let Some(other) = file.names().find(|name| !known(name)) {
            bail!("{}: unexpected tensor '{other}', the head has {} alone", path.display(), LAYERS.join(", "));
        }
        Self::of(&file, "")
    }

    /// The head in `file`, whose names begin with `within`.
    ///
    /// # Errors
    /// Names the file, and the tensor that is missing or does not fit the others.
    pub fn of(file: &TensorFile, within: &str) -> Result<Self> {
        let path = file.path().display();
        let mut head = Self { weight: vec![1.0], bias: 0.0 };
        for layer in LAYERS.iter().rev().map(|layer| format!("{within}{layer}")) {
            let weight = file.tensor(&format!("{layer}.weight"), &Device::Cpu)?;
            let &[outputs, inputs] = weight.shape() else {
                bail!("{}: tensor '{layer}.weight' has shape {:?}, expected two axes", path, weight.shape());
            };
            ensure!(
                outputs == head.weight.len() && inputs > 0,
                "{}: tensor '{layer}.weight' has shape {:?}, expected [{}, ..]",
                path,
                weight.shape(),
                head.weight.len()
            );
            let bias = file.tensor_of(&format!("{layer}.bias"), &[outputs], &Device::Cpu)?;
            head = head.after(&weight.to_host(), &bias.to_host());
        }
        let is_finite = head.weight.iter().chain([&head.bias]).all(|v| v.is_finite());
        ensure!(is_finite, "{}: holds numbers that are not finite", path);
        Ok(head)
    }

    /// What it amounts to after a layer of `weight` `[outputs, inputs]` and `bias`.
    fn after(&self, weight: &[f32], bias: &[f32]) -> Self {
        let mut of_inputs = vec![0.0; weight.len() / self.weight.len()];
        for (row, by) in weight.chunks_exact(of_inputs.len()).zip(&self.weight) {
            of_inputs.iter_mut().zip(row).for_each(|(sum, w)| *sum += by * f64::from(*w));
        }
        let bias: f64 = self.weight.iter().zip(bias).map(|(by, b)| by * f64::from(*b)).sum();
        Self { weight: of_inputs, bias: self.bias + bias }
    }

    /// What it gives for `x`.
    pub fn score(&self, x: &[f64]) -> f64 {
        dot(&self.weight, x) + self.bias
    }
}
