//! AdamW (Loshchilov & Hutter 2019) over the factors of an adapter, and clipping by the global norm, with the order
//! of operations of `torch.optim.AdamW` and `torch.nn.utils.clip_grad_norm_`.

use rayon::prelude::*;

use crate::device::Tensor;
use crate::models::lora::Adapter;

/// The optimiser's settings, called as in `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Step size.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Decoupled weight decay: each step first shrinks every parameter by `lr·weight_decay` of itself.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// What AdamW remembers between steps.
#[derive(Clone)]
pub struct Moments {
    /// Steps taken so far.
    pub steps: u64,
    /// Decayed mean of gradients, shaped as the parameters.
    pub exp_avg: Adapter,
    /// Decayed mean of squared gradients, shaped as the parameters.
    pub exp_avg_sq: Adapter,
}

impl Moments {
    /// No step taken yet.
    pub fn zeros_like(params: &Adapter) -> Self {
        Self { steps: 0, exp_avg: params.zeros_like(), exp_avg_sq: params.zeros_like() }
    }
}

impl AdamW {
    /// One step of `params` along `grads`; both and `moments` have the same shapes.
    pub fn step(&self, params: &mut Adapter, grads: &Adapter, moments: &mut Moments) {
        moments.steps += 1;
        // As in PyTorch, these are computed in f64 and rounded where they meet f32 elements.
        let n = moments.steps as f64;
        let step_size = (-(self.lr / (1.0 - self.beta1.powf(n)))) as f32;
        let correction = (1.0 - self.beta2.powf(n)).sqrt() as f32;
        let shrink = (1.0 - self.lr * self.weight_decay) as f32;
        let (beta1, beta2) = ((1.0 - self.beta1) as f32, self.beta2 as f32);
        let (beta2_rest, eps) = ((1.0 - self.beta2) as f32, self.eps as f32);

        let state = moments.exp_avg.tensors_mut().zip(moments.exp_avg_sq.tensors_mut());
        let all: Vec<_> = params.tensors_mut().zip(grads.tensors()).zip(state).collect();
        all.into_par_iter().for_each(|((params, grads), (means, squares))| {
            let state = means.data_mut().iter_mut().zip(squares.data_mut());
            // One rounding where PyTorch's vector loops round once: the results are its bits.
            for ((p, g), (m, v)) in params.data_mut().iter_mut().zip(grads.data()).zip(state) {
                *m = beta1.mul_add(g - *m, *m);
                *v = (beta2_rest * g).mul_add(*g, *v * beta2);
                let denominator = v.sqrt() / correction + eps;
                *p = *p * shrink + step_size * *m / denominator;
            }
        });
    }
}

/// Partial sums that a tensor's squares are spread over, so that they vectorise; part of the definition of the norm.
const LANES: usize = 8;

/// The L2 norm of all gradients together, summed in f64 in an order that does not depend on the number of threads.
pub fn grad_norm(grads: &Adapter) -> f64 {
    let tensors: Vec<&Tensor> = grads.tensors().collect();
    let squares: Vec<f64> = tensors
        .par_iter()
        .map(|t| {
            let mut lanes = [0.0f64; LANES];
            for chunk in t.data().chunks(LANES) {
                for (l, v) in lanes.iter_mut().zip(chunk) {
                    *l += f64::from(*v) * f64::from(*v);
                }
            }
            lanes.iter().sum()
        })
        .collect();
    squares.iter().sum::<f64>().sqrt()
}

/// Scales the gradients down so that their global norm is at most `max`; returns the norm before that. A norm that is
/// not finite would make every gradient so: check [`first_non_finite`] before.
pub fn clip_grad_norm(grads: &mut Adapter, max: f64) -> f64 {
    let norm = grad_norm(grads);
    let factor = max / (norm + 1e-6);
    if factor < 1.0 {
        let factor = factor as f32;
        let tensors: Vec<&mut Tensor> = grads.tensors_mut().collect();
        tensors.into_par_iter().for_each(|t| t.data_mut().iter_mut().for_each(|v| *v *= factor));
    }
    norm
}

/// The first gradient that is not a finite number, in words: the name of its tensor, the element and the value.
/// `names` are those of [`Adapter::names`].
pub fn first_non_finite(grads: &Adapter, names: &[String]) -> Option<String> {
    let tensors: Vec<&Tensor> = grads.tensors().collect();
    let find = |(t, name): (&&Tensor, &String)| {
        let at = t.data().iter().position(|v| !v.is_finite())?;
        Some(format!("{name} is {} at element {at}", t.data()[at]))
    };
    tensors.par_iter().zip(names).find_map_first(find)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::with_threads;
    use crate::models::lora::Factor;
    use crate::ops::testing::random;

    fn adapter(seed: u64) -> Adapter {
        let factor = |i| Some(Factor { a: random(&[3, 13], seed + i), b: random(&[7, 3], seed + i + 100) });
        Adapter::from_factors(2.0, vec![factor(0), None, factor(1), factor(2)])
    }

    fn names() -> Vec<String> {
        ["x", "y", "z"].iter().flat_map(|m| ["A", "B"].map(|f| format!("{m}.lora_{f}.weight"))).collect()
    }

    #[test]
    fn clipping_leaves_short_gradients_alone_and_brings_long_ones_to_the_limit() {
        let original = adapter(1);
        let norm = grad_norm(&original);
        let direct: f64 = original.tensors().flat_map(|t| t.data()).map(|v| f64::from(*v).powi(2)).sum();
        assert!((norm - direct.sqrt()).abs() <= 1e-12 * norm);

        let mut clipped = original.clone();
        assert_eq!(clip_grad_norm(&mut clipped, norm + 1.0), norm);
        assert!(clipped.tensors().zip(original.tensors()).all(|(c, o)| c.data() == o.data()));
        assert_eq!(clip_grad_norm(&mut clipped, 0.5), norm);
        assert!((grad_norm(&clipped) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn a_gradient_of_zero_moves_nothing_but_by_weight_decay() {
        let before = adapter(1);
        let (mut params, grads) = (before.clone(), before.zeros_like());
        let adam = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, weight_decay: 0.5, eps: 1e-8 };
        adam.step(&mut params, &grads, &mut Moments::zeros_like(&before));
        for (p, b) in params.tensors().zip(before.tensors()) {
            assert!(p.data().iter().zip(b.data()).all(|(p, b)| *p == b * 0.95));
        }
    }

    #[test]
    fn steps_and_norms_do_not_depend_on_the_number_of_threads() {
        let run = || {
            let (mut params, mut grads) = (adapter(1), adapter(2));
            let mut moments = Moments::zeros_like(&params);
            let norm = clip_grad_norm(&mut grads, 1.0);
            AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, weight_decay: 1e-4, eps: 1e-8 }.step(
                &mut params,
                &grads,
                &mut moments,
            );
            (norm, params.tensors().flat_map(|t| t.data().to_vec()).collect::<Vec<f32>>())
        };
        assert_eq!(with_threads(1, run).unwrap(), with_threads(3, run).unwrap());
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_named() {
        let mut grads = adapter(1);
        assert_eq!(first_non_finite(&grads, &names()), None);
        grads.tensors_mut().nth(4).unwrap().data_mut()[0] = f32::NAN;
        grads.tensors_mut().nth(3).unwrap().data_mut()[5] = f32::INFINITY;
        assert_eq!(first_non_finite(&grads, &names()).unwrap(), "y.lora_B.weight is inf at element 5");
    }
}
