//! Reinforce Adjoint Matching (arXiv 2605.10759): regress the velocity to that of the reward-tilted policy.

use serde::{Deserialize, Serialize};

use super::{Algorithm, Points, Velocities};
use crate::device::Tensor;
use crate::device::philox::Stream;

/// Which velocity the correction is measured from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// The lagged policy's: `target = v_ref + m·A·(y − v_old)`, as the released code has it.
    #[default]
    Released,
    /// The trained policy's own, not differentiated: `target = v_ref + m·A·(y − v_θ)` (equation 17).
    Paper,
}

/// `L = mean ‖v_θ(x_t) − target‖²` with `y = noise − x0`; the mean is over points and over all axes of a latent.
#[derive(Clone, Debug, PartialEq)]
pub struct Ram {
    /// `m`.
    pub reward_multiplier: f32,
    /// Which velocity the correction is measured from.
    pub form: Form,
    /// The density of times is `p(t) ∝ t^power` on [0, 1]; the paper's is `2t`.
    pub timestep_power: f32,
}

impl Algorithm for Ram {
    fn name(&self) -> &'static str {
        "ram"
    }

    fn time(&self, stream: &mut Stream) -> f32 {
        stream.uniform().powf(1.0 / (1.0 + self.timestep_power))
    }

    fn loss(&self, v: &Velocities, points: &Points, total: usize, dv: &mut Tensor) -> f64 {
        let per = points.x0.len() / points.t.len();
        let weight = 1.0 / (total * per) as f64;
        let base = match self.form {
            Form::Released => v.old,
            Form::Paper => v.theta,
        };
        let mut loss = 0.0;
        for (i, advantage) in points.advantage.iter().enumerate() {
            let strength = self.reward_multiplier * advantage;
            let range = i * per..(i + 1) * per;
            let [theta, reference, base, x0, noise] =
                [v.theta, v.reference, base, points.x0, points.noise].map(|t| &t.data()[range.clone()]);
            for (j, dv) in dv.data_mut()[range.clone()].iter_mut().enumerate() {
                let target = reference[j] + strength * (noise[j] - x0[j] - base[j]);
                let residual = theta[j] - target;
                loss += f64::from(residual) * f64::from(residual) * weight;
                *dv = residual * (2.0 * weight) as f32;
            }
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::philox::{Key, Purpose};
    use crate::ops::testing::{check_gradient, random, wide};

    const RAM: Ram = Ram { reward_multiplier: 3.0, form: Form::Released, timestep_power: 1.0 };

    /// `(theta, reference, old, x0, noise)` at three points.
    fn setup() -> [Tensor; 5] {
        [1, 2, 3, 4, 5].map(|seed| random(&[3, 2, 4, 4], seed))
    }

    fn run(ram: &Ram, [theta, reference, old, x0, noise]: &[Tensor; 5], advantage: &[f32]) -> (f64, Tensor) {
        let mut dv = Tensor::scratch(theta.shape());
        let points = Points { x0, noise, t: &[0.5; 3], advantage };
        let loss = ram.loss(&Velocities { theta, reference, old }, &points, 3, &mut dv);
        (loss, dv)
    }

    /// T13: the gradient is that of the loss with the target held fixed.
    #[test]
    fn t13_gradient_matches_finite_differences_in_both_forms() {
        let tensors = setup();
        let advantage = [0.5f32, -1.0, 0.0];
        for form in [Form::Released, Form::Paper] {
            let ram = Ram { form, ..RAM };
            let (loss, dv) = run(&ram, &tensors, &advantage);
            let [theta, reference, old, x0, noise] = tensors.each_ref().map(wide);
            let fixed = theta.clone();
            let n = theta.len();
            let reference_loss = |v: &[f64]| -> Vec<f64> {
                let one = (0..n)
                    .map(|i| {
                        let base = if form == Form::Released { old[i] } else { fixed[i] };
                        let a = f64::from(advantage[i / 32]);
                        (v[i] - (reference[i] + 3.0 * a * (noise[i] - x0[i] - base))).powi(2)
                    })
                    .sum::<f64>();
                vec![one / n as f64]
            };
            assert!((loss - reference_loss(&theta)[0]).abs() < 1e-5 * loss);
            check_gradient(&dv, &theta, &Tensor::from_slice(&[1.0], &[1]), reference_loss);
        }
    }

    /// T6: without a difference in reward only the anchor to the reference is left, and that is zero at the start.
    #[test]
    fn t6_zero_advantage_and_theta_equal_to_reference_give_exactly_zero() {
        let [_, reference, old, x0, noise] = setup();
        let tensors = [reference.clone(), reference, old, x0, noise];
        let (loss, dv) = run(&RAM, &tensors, &[0.0; 3]);
        assert_eq!(loss, 0.0);
        assert!(dv.data().iter().all(|v| *v == 0.0));
    }

    #[test]
    fn the_loss_of_parts_adds_up_to_that_of_the_whole() {
        let tensors = setup();
        let advantage = [0.5, -1.0, 2.0];
        let (whole, dv) = run(&RAM, &tensors, &advantage);
        let mut sum = 0.0;
        for i in 0..3 {
            let [theta, reference, old, x0, noise] = tensors.each_ref().map(|t| t.slice(i..i + 1));
            let mut part = Tensor::scratch(theta.shape());
            let points = Points { x0: &x0, noise: &noise, t: &[0.5], advantage: &advantage[i..i + 1] };
            let v = Velocities { theta: &theta, reference: &reference, old: &old };
            sum += RAM.loss(&v, &points, 3, &mut part);
            assert_eq!(part.data(), dv.slice(i..i + 1).data());
        }
        assert!((sum - whole).abs() <= 1e-12 * whole);
    }

    /// Density 2t has mean 2/3 and second moment 1/2.
    #[test]
    fn times_have_the_density_two_t() {
        let n = 100_000;
        let mut stream = Key::new(3, Purpose::Timestep).stream();
        let t: Vec<f64> = (0..n).map(|_| f64::from(RAM.time(&mut stream))).collect();
        assert!(t.iter().all(|t| *t > 0.0 && *t < 1.0));
        let mean = |f: &dyn Fn(f64) -> f64| t.iter().map(|t| f(*t)).sum::<f64>() / n as f64;
        // Standard deviations are sqrt(1/18) and sqrt(1/12); four standard errors.
        let se = 4.0 / (n as f64).sqrt();
        assert!((mean(&|t| t) - 2.0 / 3.0).abs() < se * (1.0f64 / 18.0).sqrt());
        assert!((mean(&|t| t * t) - 0.5).abs() < se * (1.0f64 / 12.0).sqrt());
    }

    /// The velocity `E[noise − x0 | x_t]` for `x0 ~ N(mean, variance)` in one dimension.
    fn gaussian_velocity(x: f64, t: f64, mean: f64, variance: f64) -> f64 {
        let spread = (1.0 - t).powi(2) * variance + t * t;
        let excess = x - (1.0 - t) * mean;
        let noise = t / spread * excess;
        let clean = mean + (1.0 - t) * variance / spread * excess;
        noise - clean
    }

    /// `E[v − target | x_t = x]`, half the expected gradient of [`Ram::loss`] at `x`, for the policy `N(mean, variance)` as
    /// trained and lagged policy and `N(0, 1)` as reference, by quadrature over x0.
    fn expected_residual(x: f64, t: f64, (mean, variance): (f64, f64), advantage: impl Fn(f64) -> f64) -> f64 {
        let v = gaussian_velocity(x, t, mean, variance);
        let spread = (1.0 - t).powi(2) * variance + t * t;
        let centre = mean + (1.0 - t) * variance / spread * (x - (1.0 - t) * mean);
        let width = (variance * t * t / spread).sqrt();
        let n = 4000;
        let z: Vec<f64> = (0..=n).map(|i| -6.0 + 12.0 * f64::from(i) / f64::from(n)).collect();
        let tensor = |f: &dyn Fn(f64) -> f64| {
            let values: Vec<f32> = z.iter().map(|z| f(centre + width * z) as f32).collect();
            Tensor::from_slice(&values, &[values.len(), 1, 1, 1])
        };
        let (x0, noise) = (tensor(&|x0| x0), tensor(&|x0| (x - (1.0 - t) * x0) / t));
        let (own, reference) = (tensor(&|_| v), tensor(&|_| gaussian_velocity(x, t, 0.0, 1.0)));
        let advantage = tensor(&advantage);
        let points = Points { x0: &x0, noise: &noise, t: &vec![t as f32; z.len()], advantage: advantage.data() };
        let mut dv = Tensor::scratch(x0.shape());
        let ram = Ram { reward_multiplier: 1.0, ..RAM };
        ram.loss(&Velocities { theta: &own, reference: &reference, old: &own }, &points, z.len(), &mut dv);
        let weights = z.iter().map(|z| (-0.5 * z * z).exp());
        let (sum, mass) =
            dv.data().iter().zip(weights).fold((0.0, 0.0), |(s, m), (dv, w)| (s + w * f64::from(*dv), m + w));
        sum / mass * z.len() as f64 / 2.0
    }

    /// f32 residuals of size up to 30, averaged over 4000 points.
    const QUADRATURE: f64 = 2e-5;

    /// For `p_ref = N(0,1)` and `R = λx` the tilted optimum is `N(λ,1)`: its velocity is a zero of the expected
    /// gradient at every time and place (the reward enters centred, which changes nothing here).
    #[test]
    fn t16_tilted_optimum_of_a_gaussian_with_linear_reward_is_a_zero_of_the_expected_gradient() {
        let lambda = 0.7;
        for t in [0.2, 0.5, 0.9] {
            for x in [-1.0, 0.3, 2.0] {
                let residual = |mean: f64| expected_residual(x, t, (mean, 1.0), |x0| lambda * (x0 - mean));
                assert!(residual(lambda).abs() < QUADRATURE, "t {t} x {x}: {}", residual(lambda));
                // Elsewhere the step leads towards the optimum: v falls where the mean rises.
                assert!(residual(0.2) > 1e-2 && residual(1.2) < -1e-2, "t {t} x {x}");
            }
        }
    }

    /// The specification's counter-example (§4.6): with a quadratic reward the correction is an approximation.
    /// Reference N(0,1), `R = −x²/2`, optimum N(0,½); at t = ½, x = 1 the velocity is 2/3 and the correction 4/9.
    #[test]
    fn t16_quadratic_reward_gives_four_ninths_where_two_thirds_is_exact() {
        assert!((gaussian_velocity(1.0, 0.5, 0.0, 0.5) - 2.0 / 3.0).abs() < 1e-12);
        assert!(gaussian_velocity(1.0, 0.5, 0.0, 1.0).abs() < 1e-12);
        let residual = expected_residual(1.0, 0.5, (0.0, 0.5), |x0| -0.5 * x0 * x0);
        assert!((residual - (2.0 / 3.0 - 4.0 / 9.0)).abs() < QUADRATURE, "{residual}");
    }

    /// T14: moving old or reference changes the loss but nothing in the formula of its gradient sees them as
    /// variables: the gradient is `2(v_θ − target)/N` with the target as it is.
    #[test]
    fn t14_gradient_is_the_residual_alone() {
        let tensors = setup();
        let (_, dv) = run(&RAM, &tensors, &[1.0, 1.0, 1.0]);
        let [theta, reference, old, x0, noise] = &tensors;
        for i in 0..theta.len() {
            let target = reference.data()[i] + 3.0 * (noise.data()[i] - x0.data()[i] - old.data()[i]);
            let want = 2.0 * (theta.data()[i] - target) / theta.len() as f32;
            assert!((dv.data()[i] - want).abs() <= 1e-6 * want.abs().max(1e-3));
        }
    }

    #[test]
    fn the_first_draw_of_a_stream_does_not_depend_on_others() {
        let key = Key { step: 3, ..Key::new(1, Purpose::Timestep) };
        assert_eq!(RAM.time(&mut key.stream()), RAM.time(&mut key.stream()));
    }
}
