use std::path::Path;

use engine::device::{Tensor, with_threads};
use engine::io::{TensorFile, read_json};
use engine::models::lora::{Adapter, Factor, select};
use engine::models::mmdit::{Checkpointing, Condition, Mmdit};

use super::{fixture, relative_error};

struct Inputs {
    x: Tensor,
    timestep: Vec<f32>,
    prompt_embeds: Tensor,
    pooled: Tensor,
}

impl Inputs {
    fn load(io: &TensorFile, run: &str) -> Self {
        let get = |name: &str| io.tensor(&format!("{run}.{name}")).unwrap();
        Self {
            x: get("x"),
            timestep: get("timestep").data().to_vec(),
            prompt_embeds: get("prompt_embeds"),
            pooled: get("pooled_prompt_embeds"),
        }
    }

    fn row(&self, i: usize) -> Self {
        Self {
            x: self.x.slice(i..i + 1),
            timestep: vec![self.timestep[i]],
            prompt_embeds: self.prompt_embeds.slice(i..i + 1),
            pooled: self.pooled.slice(i..i + 1),
        }
    }

    fn velocity(&self, model: &Mmdit) -> Tensor {
        model.forward(&self.x, self.condition(), None)
    }

    fn condition(&self) -> Condition<'_> {
        Condition { timestep: &self.timestep, prompt_embeds: &self.prompt_embeds, pooled_prompt_embeds: &self.pooled }
    }
}

fn open(folder: &Path) -> (Mmdit, TensorFile) {
    (Mmdit::load(folder).unwrap(), TensorFile::open(&folder.join("io.safetensors")).unwrap())
}

#[test]
fn velocity_matches_diffusers_for_every_configuration() {
    for case in ["sd3", "sd35", "sd35_all_dual", "sd35_large"] {
        let (model, io) = open(&fixture("mmdit").join(case));
        for run in ["square", "wide"] {
            if io.entry(&format!("{run}.x")).is_none() {
                continue;
            }
            let got = Inputs::load(&io, run).velocity(&model);
            let error = relative_error(&got, &io.tensor(&format!("{run}.velocity")).unwrap());
            println!("mmdit {case} {run}: {error:.1e}");
            assert!(error <= 1e-5, "{case} {run}: {error:e}");
        }
    }
}

#[test]
fn bf16_weights_err_no_more_than_twice_as_much_as_bf16_pytorch() {
    let (model, io) = open(&fixture("mmdit/sd35_bf16"));
    for run in ["square", "wide"] {
        let got = Inputs::load(&io, run).velocity(&model);
        let exact = io.tensor(&format!("{run}.velocity_f32")).unwrap();
        let theirs = relative_error(&io.tensor(&format!("{run}.velocity_bf16")).unwrap(), &exact);
        let ours = relative_error(&got, &exact);
        println!("mmdit bf16 {run}: ours {ours:.1e}, PyTorch {theirs:.1e}");
        assert!(ours <= 2.0 * theirs, "{run}: {ours:e} against {theirs:e}");
    }
}

#[test]
fn velocity_has_the_same_bits_for_any_batch_and_number_of_threads() {
    let (model, io) = open(&fixture("mmdit/sd35"));
    let inputs = Inputs::load(&io, "wide");
    let whole = with_threads(1, || inputs.velocity(&model)).unwrap();
    assert_eq!(whole.data(), with_threads(2, || inputs.velocity(&model)).unwrap().data());
    for i in 0..inputs.x.dim(0) {
        assert_eq!(whole.slice(i..i + 1).data(), inputs.row(i).velocity(&model).data());
    }
}

#[derive(serde::Deserialize)]
struct Case {
    model: String,
    rank: usize,
    alpha: f32,
    targets: Vec<String>,
}

/// The case's model, its tensors and the adapter stored under `prefix`.
fn ram_case(name: &str) -> (Mmdit, TensorFile, Adapter) {
    let folder = fixture("ram_step").join(name);
    let case: Case = read_json(&folder.join("case.json")).unwrap();
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    let model = Mmdit::load(&fixture(&case.model)).unwrap();
    let chosen = select(model.modules(), &case.targets).unwrap();
    let factors = model.modules().iter().zip(chosen).map(|(m, chosen)| {
        let get = |f: &str| io.tensor(&format!("lora.{}.lora_{f}.weight", m.name)).unwrap();
        chosen.then(|| Factor { a: get("A"), b: get("B") })
    });
    let adapter = Adapter::from_factors(case.alpha / case.rank as f32, factors.collect());
    (model, io, adapter)
}

/// Velocity, gradients of the factors, and gradient to the latent at the case's points.
fn step(model: &Mmdit, io: &TensorFile, adapter: &Adapter, policy: Checkpointing) -> (Tensor, Adapter, Tensor) {
    let get = |name: &str| io.tensor(name).unwrap();
    let (mut x, noise, t) = (get("x0"), get("noise"), get("t"));
    let per = x.len() / t.len();
    for (i, (x, e)) in x.data_mut().iter_mut().zip(noise.data()).enumerate() {
        let t = t.data()[i / per];
        *x = (1.0 - t) * *x + t * e;
    }
    let timestep: Vec<f32> = t.data().iter().map(|t| 1000.0 * t).collect();
    let (prompt_embeds, pooled) = (get("prompt_embeds"), get("pooled_prompt_embeds"));
    let condition = Condition { timestep: &timestep, prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled };
    let (velocity, saved) = model.forward_saved(&x, condition, adapter, policy);
    let mut grads = adapter.zeros_like();
    let dlatent = model.backward(&get("dbg.dv"), saved, adapter, &mut grads, true).unwrap();
    (velocity, grads, dlatent)
}

#[test]
fn lora_gradients_match_autograd_for_every_configuration() {
    for case in ["a", "b", "c"] {
        let (model, io, adapter) = ram_case(case);
        let (velocity, grads, _) = step(&model, &io, &adapter, Checkpointing::None);
        let error = relative_error(&velocity, &io.tensor("velocity").unwrap());
        assert!(error <= 1e-5, "{case}: velocity {error:e}");
        let mut worst = 0.0f64;
        for (name, grad) in grads.names(model.modules()).iter().zip(grads.tensors()) {
            let want = io.tensor(&format!("grad.{name}")).unwrap();
            if want.data().iter().all(|v| *v == 0.0) {
                assert!(grad.data().iter().all(|v| *v == 0.0), "{case} {name}: nothing depends on it");
                continue;
            }
            let error = relative_error(grad, &want);
            worst = worst.max(error);
            assert!(error <= 1e-4, "{case} {name}: {error:e}");
        }
        println!("ram_step {case}: worst gradient error {worst:.1e}");
    }
}

#[test]
fn activation_checkpointing_changes_no_bit() {
    for case in ["a", "b", "c"] {
        let (model, io, adapter) = ram_case(case);
        let (_, want, dlatent) = step(&model, &io, &adapter, Checkpointing::None);
        for policy in [Checkpointing::Block, Checkpointing::Selective] {
            let (_, got, d) = step(&model, &io, &adapter, policy);
            assert_eq!(d.data(), dlatent.data(), "{case} {policy:?}");
            assert!(got.tensors().zip(want.tensors()).all(|(g, w)| g.data() == w.data()), "{case} {policy:?}");
        }
    }
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    let (model, io, adapter) = ram_case("b");
    let [one, three] = [1, 3].map(|n| with_threads(n, || step(&model, &io, &adapter, Checkpointing::None).1).unwrap());
    assert!(one.tensors().zip(three.tensors()).all(|(a, b)| a.data() == b.data()));
}

#[test]
fn gradient_to_the_latent_matches_finite_differences() {
    let (model, io, adapter) = ram_case("a");
    let (_, _, dlatent) = step(&model, &io, &adapter, Checkpointing::None);
    // A directional derivative along a fixed direction: in f32 single elements would drown in rounding.
    let (x0, dv, t) = (io.tensor("x0").unwrap(), io.tensor("dbg.dv").unwrap(), io.tensor("t").unwrap());
    let (noise, prompt_embeds) = (io.tensor("noise").unwrap(), io.tensor("prompt_embeds").unwrap());
    let pooled = io.tensor("pooled_prompt_embeds").unwrap();
    let timestep: Vec<f32> = t.data().iter().map(|t| 1000.0 * t).collect();
    let condition = Condition { timestep: &timestep, prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled };
    let per = x0.len() / t.len();
    let loss = |step: f32| -> f64 {
        let mut x = x0.clone();
        for (i, (x, e)) in x.data_mut().iter_mut().zip(noise.data()).enumerate() {
            let t = t.data()[i / per];
            *x = (1.0 - t) * *x + t * e + step * ((i * 7 % 13) as f32 / 6.0 - 1.0);
        }
        let v = model.forward(&x, condition, Some(&adapter));
        v.data().iter().zip(dv.data()).map(|(v, d)| f64::from(*v) * f64::from(*d)).sum()
    };
    let numeric = (loss(2e-3) - loss(-2e-3)) / 4e-3;
    let analytic: f64 =
        dlatent.data().iter().enumerate().map(|(i, d)| f64::from(*d) * ((i * 7 % 13) as f64 / 6.0 - 1.0)).sum();
    assert!((numeric - analytic).abs() <= 2e-3 * analytic.abs(), "{numeric} against {analytic}");
}
