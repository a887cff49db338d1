//! Dynamic loss scaling, as `torch.amp.GradScaler` does it: gradients in half precision underflow unless the loss is scaled up
//! before the backward, and overflow if it is scaled too much.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// What the loss is times before the backward: a power of two, so that scaling alone rounds nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct LossScale {
    scale: f64,
    /// Steps since the scale was last changed.
    steps: u64,
}

const INITIAL: f64 = 65536.0;
const GROWTH: f64 = 2.0;
const BACKOFF: f64 = 0.5;
const GROWTH_INTERVAL: u64 = 2000;
/// At this scale gradients are what they are: what overflows then is not the scale's doing. (PyTorch goes on for ever.)
const FLOOR: f64 = 1.0;

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: INITIAL, steps: 0 }
    }
}

impl LossScale {
    /// The factor on the loss.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// After a step whose gradients were finite: doubled after every 2,000 of them.
    pub fn grow(&mut self) {
        self.steps += 1;
        if self.steps == GROWTH_INTERVAL {
            self.steps = 0;
            let grown = self.scale * GROWTH;
            if (grown as f32).is_finite() {
                self.scale = grown;
            }
        }
    }

    /// After one whose gradients were not, because of `what`; the step is not taken.
    ///
    /// # Errors
    /// If the loss was not scaled at all.
    pub fn back_off(&mut self, what: &str) -> Result<()> {
        if self.scale <= FLOOR {
            bail!(
                "the gradient overflows f16 though the loss is not scaled any more ({what}); train.compute = \"bf16\" has the range of f32"
            );
        }
        (self.scale, self.steps) = (self.scale * BACKOFF, 0);
        Ok(())
    }

    /// As a checkpoint keeps it.
    pub fn to_json(&self) -> Value {
        json!({ "scale": self.scale, "steps": self.steps })
    }

    /// What [`LossScale::to_json`] gave; the beginning where a checkpoint of an earlier version says nothing.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn from_json(saved: &Value) -> Result<Self> {
        if saved.is_null() {
            return Ok(Self::default());
        }
        let number = saved["scale"].as_f64().filter(|s| s.is_finite() && *s >= FLOOR && s.log2().fract() == 0.0);
        let scale = number.context("the checkpoint's loss_scale.scale is no power of two from 1 on")?;
        Ok(Self { scale, steps: saved["steps"].as_u64().context("the checkpoint's loss_scale has no number 'steps'")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_doubles_after_2000_good_steps_in_a_row_and_halves_after_a_bad_one() {
        let mut scale = LossScale::default();
        (0..1999).for_each(|_| scale.grow());
        assert_eq!(scale.scale(), 65536.0);
        scale.grow();
        assert_eq!(scale.scale(), 131072.0);
        (0..1500).for_each(|_| scale.grow());
        scale.back_off("x").unwrap();
        (0..1999).for_each(|_| scale.grow());
        assert_eq!(scale.scale(), 65536.0);
        assert_eq!(LossScale::from_json(&scale.to_json()).unwrap(), scale);
        scale.grow();
        assert_eq!(scale.scale(), 131072.0);
    }

    #[test]
    fn it_ends_below_infinity_and_at_one() {
        let mut scale = LossScale { scale: 2f64.powi(127), steps: 1999 };
        scale.grow();
        assert_eq!(scale, LossScale { scale: 2f64.powi(127), steps: 0 });
        (0..127).for_each(|_| scale.back_off("lora_A is inf").unwrap());
        assert_eq!(scale.scale(), 1.0);
        let e = scale.back_off("lora_A is inf").unwrap_err().to_string();
        assert!(
            e.starts_with("the gradient overflows f16 though the loss is not scaled any more (lora_A is inf)"),
            "{e}"
        );
    }

    #[test]
    fn a_damaged_one_is_refused() {
        for saved in [json!({"scale": 0.0, "steps": 1}), json!({"scale": 3.0, "steps": 1}), json!({"scale": 2.0})] {
            LossScale::from_json(&saved).unwrap_err();
        }
        assert_eq!(LossScale::from_json(&Value::Null).unwrap(), LossScale::default());
    }
}
