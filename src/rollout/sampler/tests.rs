use super::*;
use crate::device::philox::{Key, Purpose};
use crate::device::{Device, Tensor};
use crate::ops::noise;
use crate::ops::step::{self, Inputs};
use crate::rollout::schedule::Schedule;

fn grid(steps: usize) -> Vec<f32> {
    Schedule::with_shift(3.0).sigmas(steps, 1024).unwrap()
}

/// Rows of the specification's table of golden numbers: step, then a, b, the factors on the history, and s.
fn has_rows(sampler: &dyn Sampler, steps: usize, rows: &[(usize, [f64; 5])]) {
    let table = sampler.steps(&grid(steps));
    assert_eq!(table.len(), steps);
    for (i, want) in rows {
        let at = table[*i];
        let found = [at.a, at.b, at.history[0], at.history[1], at.s];
        // The grid is in f32; where it is nearly 1 the noise of a flow amplifies its rounding.
        let near = found.iter().zip(want).all(|(a, b)| (a - b).abs() < 3e-6 * b.abs().max(0.1));
        assert!(near, "{i}: {found:?}, expected {want:?}");
    }
}

#[test]
fn t2_euler_has_the_published_rows() {
    has_rows(
        &Euler,
        10,
        &[(0, [1.0, -0.039_870_679_378_5, 0.0, 0.0, 0.0]), (9, [1.0, -0.008_928_571_827_71, 0.0, 0.0, 0.0])],
    );
    // The factor is what subtracting the f32 levels gives.
    let steps = Euler.steps(&grid(10));
    assert!(steps.windows(2).all(|w| w[0].row().b == w[1].sigma - w[0].sigma));
}

#[test]
fn t2_stochastic_samplers_have_the_published_rows() {
    has_rows(
        &FlowSde { noise_level: 0.7 },
        10,
        &[
            (0, [0.755, -0.039_870_679_378_5, 0.0, 0.0, 0.7]),
            (3, [0.884_093_478_315, -0.083_818_432_688_7, 0.0, 0.0, 0.445_897_143_559]),
            (8, [0.908_671_873_713, -0.335_054_663_583, 0.0, 0.0, 0.225_360_486_408]),
            (9, [0.997_792_792_693, -0.011_116_071_925_5, 0.0, 0.0, 0.006_278_090_311_09]),
        ],
    );
    has_rows(
        &Cps { noise_level: 0.8 },
        10,
        &[
            (0, [0.336_566_956_248, -0.039_870_679_378_5, 0.0, 0.0, 0.913_137_246_863]),
            (3, [0.453_868_964_878, -0.145_042_693_132, 0.0, 0.0, 0.751_684_882_95]),
            (8, [0.993_830_508_603, -0.273_574_283_532, 0.0, 0.0, 0.008_491_576_417_95]),
            (9, [1.0, -0.008_928_571_827_71, 0.0, 0.0, 0.0]),
        ],
    );
    has_rows(
        &DanceSde { noise_level: 0.5 },
        10,
        &[
            (0, [0.995_016_165_078, -0.039_870_679_378_5, 0.0, 0.0, 0.099_838_218_356_6]),
            (3, [0.990_188_200_037, -0.068_720_336_993_4, 0.0, 0.0, 0.129_734_384_725]),
            (9, [0.875, -0.132_812_500_349, 0.0, 0.0, 0.047_245_560_182_2]),
        ],
    );
    has_rows(
        &Ddim { noise_level: 1.0 },
        10,
        &[
            (0, [0.039_870_679_378_5, -0.039_870_679_378_5, 0.0, 0.0, 0.960_129_320_621]),
            (3, [0.704_054_921_632, -0.109_439_305_372, 0.0, 0.0, 0.616_626_064_37]),
            (9, [1.0, -0.008_928_571_827_71, 0.0, 0.0, 0.0]),
        ],
    );
}

#[test]
fn t2_samplers_with_a_history_have_the_published_rows() {
    has_rows(
        &DpmSolver2,
        10,
        &[
            (0, [1.0, -0.039_870_679_378_5, 0.0, 0.0, 0.0]),
            (1, [1.0, -0.046_780_347_824_1, 0.0, 0.0, 0.0]),
            (2, [1.020_613_854_8, -0.074_484_314_627_8, -0.020_613_854_796_4, 0.0, 0.0]),
            (8, [3.234_220_374_92, -0.890_342_469_121, -2.234_220_374_92, 0.0, 0.0]),
            (9, [1.0, -0.008_928_571_827_71, 0.0, 0.0, 0.0]),
        ],
    );
    has_rows(
        &SaSolver { noise_level: 0.4 },
        14,
        &[
            (0, [1.0, -0.025_941_776_275_6, 0.0, 0.0, 0.0]),
            (1, [1.005_216_524_23, -0.035_086_503_213_7, -0.005_216_524_230_57, 0.0, 0.0]),
            (2, [1.035_959_726_61, -0.067_547_055_836_4, -0.040_990_195_086_8, 0.005_030_468_474_99, 0.0]),
            (
                3,
                [0.990_304_300_616, -0.082_200_272_437_7, -0.056_451_628_790_6, 0.013_088_646_251_9, 0.299_434_657_754],
            ),
            (9, [1.172_603_467_6, -0.224_774_846_673, -0.271_957_270_18, 0.070_516_653_372_9, 0.163_321_112_225]),
            (12, [1.542_629_879_26, -0.214_988_047_642, -0.775_218_220_45, 0.232_588_341_186, 0.0]),
            (13, [1.0, -0.103_098_928_928, 0.0, 0.0, 0.0]),
        ],
    );
}

#[test]
fn t2_log_probabilities_are_the_published_ones() {
    let steps = FlowSde { noise_level: 0.7 }.steps(&grid(10));
    for (i, kappa, c0) in [(0, 1.020_408_16, -0.562_263_589), (3, 2.514_783_63, -0.111_271_56)] {
        let found = steps[i].log_prob.unwrap();
        assert!((found.kappa - kappa).abs() < 2e-6 && (found.c0 - c0).abs() < 2e-6, "{i}: {found:?}");
    }
    let s = 0.445_897_143_559_f64;
    // The worked step of the specification: x = 0.5, v = -0.3, ε = 0.8.
    let at = steps[3];
    let mean = at.a * 0.5 + at.b * -0.3;
    assert!((mean - 0.467_192).abs() < 1e-6, "{mean}");
    assert!((at.log_prob.unwrap().of((0.8 * s).powi(2)) + 0.431_272).abs() < 2e-6);
    let at = Cps { noise_level: 0.8 }.steps(&grid(10))[3];
    assert!((at.a * 0.5 + at.b * -0.3 - 0.270_447).abs() < 1e-6);
    assert!((at.log_prob.unwrap().of((0.8 * at.s).powi(2)) + 0.361_619).abs() < 2e-6);
}

/// T3: without noise they are the ODE, in every bit of the numbers that the op takes.
#[test]
fn t3_without_noise_a_stochastic_sampler_is_euler_bit_for_bit() {
    for kind in [Kind::Flow, Kind::Cps, Kind::Dance, Kind::Ddim] {
        for steps in 2..60 {
            let (table, euler) = (kind.at(0.0).steps(&grid(steps)), Euler.steps(&grid(steps)));
            assert_eq!(table, euler, "{kind:?}");
        }
    }
}

#[test]
fn outside_a_window_steps_are_euler_s_and_inside_the_sampler_s() {
    let (sigmas, flow) = (grid(10), FlowSde { noise_level: 0.7 });
    let table = windowed(&flow, &sigmas, &[2, 3]);
    for (i, step) in table.iter().enumerate() {
        let want = if (2..4).contains(&i) { flow.steps(&sigmas)[i] } else { Euler.steps(&sigmas)[i] };
        assert_eq!(*step, want);
    }
}

/// T19: CPS keeps the coefficients of the flow: `1 − T` on the predicted image, and of the predicted and the new noise together
/// `T`; at noise level 1 all of it is new.
#[test]
fn t19_cps_keeps_the_coefficients_of_the_flow() {
    for noise_level in [0.0, 0.3, 0.8, 1.0] {
        let sigmas = grid(10);
        for (step, pair) in (Cps { noise_level }).steps(&sigmas).iter().zip(sigmas.windows(2)) {
            let (sigma, next) = (f64::from(pair[0]), f64::from(pair[1]));
            // Of x = (1 − S)·x̂0 + S·x̂1 and v = x̂1 − x̂0.
            let (image, noise) = (step.a * (1.0 - sigma) - step.b, step.a * sigma + step.b);
            assert!((image - (1.0 - next)).abs() < 1e-12, "{step:?}");
            assert!(((noise * noise + step.s * step.s).sqrt() - next).abs() < 1e-12, "{step:?}");
            assert!(noise_level < 1.0 || noise.abs() < 1e-12, "{step:?}");
        }
    }
}

/// Data of this mean and deviation 1.
const MEAN: f64 = 0.7;

/// Slope and offset of the exact velocity `E[ε − x0 | x]` at noise level `t`, which is linear in `x`.
fn exact_velocity(t: f64) -> (f64, f64) {
    let slope = (t - (1.0 - t)) / spread(t);
    (slope, -MEAN - slope * (1.0 - t) * MEAN)
}

/// Mean of the samples at noise level `t`.
fn centre(t: f64) -> f64 {
    (1.0 - t) * MEAN
}

/// Their variance.
fn spread(t: f64) -> f64 {
    (1.0 - t).powi(2) + t * t
}

/// Mean and variance of `x'` after one step without history from samples with those of `from`.
fn moved(from: (f64, f64), step: &Step) -> (f64, f64) {
    let (slope, offset) = exact_velocity(step.sigma.into());
    let gain = step.a + step.b * slope;
    (gain * from.0 + step.b * offset, gain * gain * from.1 + step.s * step.s)
}

/// Levels in equal steps where a model is asked.
fn levels(steps: usize) -> Vec<f32> {
    (0..=steps).map(|i| 0.95 - 0.9 * i as f32 / steps as f32).collect()
}

/// The marginals of a Gaussian whose velocity is known are kept, up to the order of the steps: halving them halves the error.
#[test]
fn samplers_keep_the_marginals_of_a_gaussian() {
    let error = |kind: Kind, noise_level: f64, steps: usize| {
        let sigmas = levels(steps);
        let (start, end) = (f64::from(sigmas[0]), f64::from(sigmas[steps]));
        let (mean, variance) = kind.at(noise_level).steps(&sigmas).iter().fold((centre(start), spread(start)), moved);
        (mean - centre(end)).abs().max((variance - spread(end)).abs())
    };
    for (kind, noise_level) in [(Kind::Euler, 0.0), (Kind::Flow, 0.7), (Kind::Dance, 0.5), (Kind::Ddim, 1.0)] {
        let (coarse, fine) = (error(kind, noise_level, 200), error(kind, noise_level, 400));
        assert!(fine < 0.01 && fine < 0.6 * coarse, "{kind:?}: {coarse} {fine}");
    }
}

/// Samples that are drawn, a thousand of them in each of `ROWS` rows.
const ROWS: usize = 64;
const EACH: usize = 1000;

/// Mean and variance of all elements of `x`, and the standard errors of both if they are normal.
fn moments(x: &Tensor) -> [(f64, f64); 2] {
    let values: Vec<f64> = x.to_host().into_iter().map(f64::from).collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    [(mean, (variance / n).sqrt()), (variance, variance * (2.0 / n).sqrt())]
}

/// Samples at noise level `t`.
fn marginal(t: f64) -> Tensor {
    let keys: Vec<Key> = (0..ROWS).map(|i| Key { prompt: i as u32, ..Key::new(1, Purpose::InitialLatent) }).collect();
    let unit = noise::normal(&Device::Cpu, &keys, &[ROWS, EACH]);
    linear(&unit, spread(t).sqrt(), centre(t))
}

/// `slope·x + offset`.
fn linear(x: &Tensor, slope: f64, offset: f64) -> Tensor {
    let values: Vec<f32> = x.to_host().into_iter().map(|v| (slope * f64::from(v) + offset) as f32).collect();
    Tensor::from_slice(&x.device(), &values, x.shape())
}

/// The sample after `step` with the exact velocity, taken by the op itself; `history` are the clean predictions so far.
fn stepped(x: &Tensor, step: &Step, draw: u32, history: &mut [Option<Tensor>; 2]) -> Tensor {
    let (slope, offset) = exact_velocity(step.sigma.into());
    let velocity = linear(x, slope, offset);
    let key = |i: usize| Key { prompt: i as u32, step: draw, ..Key::new(2, Purpose::SamplerNoise) };
    let keys: Vec<Key> = (0..ROWS).map(key).collect();
    let drawn = if step.s == 0.0 { &[][..] } else { &keys };
    let of = history.each_ref().map(Option::as_ref);
    let inputs = Inputs { x, velocity: &velocity, guidance: None, history: of, noise: drawn };
    let next = step::forward(inputs, step.row());
    let clean = step::clean(inputs, step.sigma);
    *history = [Some(clean), history[0].take()];
    next
}

/// What is drawn has the moments that the numbers of each step say, within four standard errors.
#[test]
fn steps_that_are_drawn_have_the_mean_and_variance_of_their_row() {
    for (kind, noise_level) in
        [(Kind::Euler, 0.0), (Kind::Flow, 0.7), (Kind::Cps, 0.8), (Kind::Dance, 0.5), (Kind::Ddim, 1.0)]
    {
        for (i, step) in kind.at(noise_level).steps(&levels(7)).iter().enumerate() {
            let t = f64::from(step.sigma);
            let want = moved((centre(t), spread(t)), step);
            let [mean, variance] = moments(&stepped(&marginal(t), step, i as u32, &mut [None, None]));
            assert!((mean.0 - want.0).abs() < 4.0 * mean.1, "{kind:?} {i}: mean {mean:?}, expected {}", want.0);
            assert!((variance.0 - want.1).abs() < 4.0 * variance.1, "{kind:?} {i}: {variance:?}, expected {}", want.1);
        }
    }
}

/// After many steps the samples are those of the Gaussian, within four standard errors. So many steps leave an error of
/// discretisation of less than one of them (the test above of their order); CPS, which takes the predicted noise for noise of
/// deviation 1, keeps the mean alone.
#[test]
fn samples_that_are_drawn_keep_the_marginals_of_a_gaussian() {
    let kinds = [
        (Kind::Euler, 0.0),
        (Kind::Flow, 0.7),
        (Kind::Dance, 0.5),
        (Kind::Ddim, 1.0),
        (Kind::Dpm2, 0.0),
        (Kind::Sa, 0.4),
        (Kind::Cps, 0.8),
    ];
    for (kind, noise_level) in kinds {
        let sigmas = levels(400);
        let (mut x, mut history) = (marginal(sigmas[0].into()), [None, None]);
        let table = kind.at(noise_level).steps(&sigmas);
        // SA-Solver has levels of its own at the end, and its last step is the clean prediction: it is looked at before that.
        let count = if kind == Kind::Sa { table.len() - 1 } else { table.len() };
        let end = f64::from(table.get(count).map_or(sigmas[count], |next| next.sigma));
        for (i, step) in table[..count].iter().enumerate() {
            x = stepped(&x, step, i as u32, &mut history);
        }
        let [mean, variance] = moments(&x);
        assert!((mean.0 - centre(end)).abs() < 4.0 * mean.1, "{kind:?}: mean {mean:?}, expected {}", centre(end));
        let is_kept = (variance.0 - spread(end)).abs() < 4.0 * variance.1;
        assert!(is_kept || kind == Kind::Cps, "{kind:?}: {variance:?}, expected {}", spread(end));
    }
}
