//! fp8 weights with a factor per layer, as ComfyUI writes them in safetensors.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Entry, Stored, TensorFile, short};

/// Names of the factor of `L.weight` in two versions of ComfyUI, and of what only concerns products in fp8.
const FACTORS: [&str; 2] = ["scale_weight", "weight_scale"];
const UNUSED: [&str; 2] = ["scale_input", "input_scale"];
/// The tensor that says that there are factors, and the one of a layer that says how it is stored.
const MARKER: &str = "scaled_fp8";
const FORMAT: &str = "comfy_quant";
/// The key of the header that says the same of all layers.
const FORMATS: &str = "_quantization_metadata";

/// `tensors` of `file`, those in fp8 times their factors, without the factors.
///
/// # Errors
/// Names a layer in another format, or a factor that is not one number or belongs to no weights in fp8.
pub fn with_factors(file: &TensorFile, mut tensors: BTreeMap<String, Entry>) -> Result<BTreeMap<String, Entry>> {
    let shown = file.path().display();
    if let Some(text) = file.metadata().get(FORMATS) {
        let formats: Value = serde_json::from_str(text).with_context(|| format!("{shown}: {FORMATS}"))?;
        for (layer, of) in formats["layers"].as_object().into_iter().flatten() {
            check_format(layer, of).with_context(|| format!("{shown}: {FORMATS}"))?;
        }
    }
    let mut factors = Vec::new();
    for (name, entry) in &tensors {
        let Some((layer, kind)) = name.rsplit_once('.').or((name == MARKER).then_some(("", MARKER))) else { continue };
        if kind == FORMAT {
            let of: Value = serde_json::from_slice(entry.raw()).with_context(|| format!("{shown}: {}", short(name)))?;
            check_format(layer, &of).with_context(|| shown.to_string())?;
        }
        let factor = match FACTORS.contains(&kind) {
            true => Some(factor(name, entry).with_context(|| shown.to_string())?),
            false => None,
        };
        if factor.is_some() || UNUSED.contains(&kind) || [FORMAT, MARKER].contains(&kind) {
            factors.push((name.clone(), format!("{layer}.weight"), factor));
        }
    }
    for (name, weight, factor) in factors {
        tensors.remove(&name);
        let Some(factor) = factor else { continue };
        match tensors.get_mut(&weight) {
            Some(entry) if matches!(entry.stored(), Stored::Blocks(_)) => *entry = entry.times(factor),
            _ => bail!("{shown}: '{}' has no weights in fp8 beside it", short(&name)),
        }
    }
    Ok(tensors)
}

fn check_format(layer: &str, of: &Value) -> Result<()> {
    let format = of["format"].as_str().unwrap_or("not given");
    let known = ["float8_e4m3fn", "float8_e5m2"].contains(&format);
    ensure!(known, "layer '{}': format {}, expected float8_e4m3fn or float8_e5m2", short(layer), short(format));
    Ok(())
}

fn factor(name: &str, entry: &Entry) -> Result<f32> {
    let one = entry.shape().iter().product::<usize>() == 1;
    let value = one.then(|| entry.to_f32()).flatten();
    value.map(|v| v[0]).with_context(|| format!("'{}' has shape {:?}, expected one number", short(name), entry.shape()))
}
