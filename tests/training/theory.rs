use engine::config::{self, Job};
use engine::io::image::RgbImage;
use engine::models::lora::Adapter;
use engine::train::guard::Interrupt;
use engine::train::setup::{Setup, plan};
use engine::train::state::State;

use super::write_config;

fn setup(changes: &[&str]) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let path = write_config(dir.path(), "");
    let changes: Vec<String> = changes.iter().map(|c| c.to_string()).collect();
    plan(config::load(&path, &changes).unwrap(), Job::Train).unwrap().load().unwrap()
}

fn images(setup: &mut Setup, adapter: &Adapter) -> Vec<RgbImage> {
    setup.evaluate(adapter, &Interrupt::never()).unwrap().images
}

/// No adapter at all.
fn none(setup: &Setup) -> Adapter {
    Adapter::from_factors(1.0, setup.pipeline.transformer.modules().iter().map(|_| None).collect())
}

/// T10: only the adapter's tensors change.
#[test]
fn t10_training_leaves_the_base_alone() {
    let mut setup = setup(&[]);
    let base = none(&setup);
    let (before, mut state) = (images(&mut setup, &base), State::new(&setup));
    let start = state.clone();
    for _ in 0..2 {
        setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    }
    assert_eq!(before, images(&mut setup, &base));
    assert!(state.theta.tensors().zip(start.theta.tensors()).any(|(a, b)| a.data() != b.data()));
}

/// T11: an adapter whose B is zero is the reference, and so is none; another adapter in between changes nothing.
#[test]
fn t11_without_its_adapter_the_model_is_the_reference() {
    let mut setup = setup(&[]);
    let mut state = State::new(&setup);
    let (fresh, base) = (state.theta.clone(), none(&setup));
    let reference = images(&mut setup, &base);
    assert_eq!(images(&mut setup, &fresh), reference);
    setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    assert_ne!(images(&mut setup, &state.theta), reference);
    assert_eq!(images(&mut setup, &fresh), reference);
}

/// T12: evaluating the average between two updates changes nothing of what is learnt.
#[test]
fn t12_evaluating_the_average_is_lossless() {
    let run = |evaluates: bool| {
        let mut setup = setup(&[]);
        let mut state = State::new(&setup);
        for _ in 0..3 {
            setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
            if evaluates {
                images(&mut setup, &state.average.clone());
            }
        }
        state.to_checkpoint(&setup).unwrap()
    };
    let (with, without) = (run(true), run(false));
    assert!(with.tensors.iter().zip(&without.tensors).all(|(a, b)| a.0 == b.0 && a.1.data() == b.1.data()));
}

/// T6: with nothing to tell images apart the gradient is zero at the start and the policy does not move.
#[test]
fn t6_a_constant_reward_moves_nothing() {
    let mut setup = setup(&["rewards.jpeg_compressibility=0"]);
    let mut state = State::new(&setup);
    let report = setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    assert_eq!((report.loss, report.grad_norm), (0.0, 0.0));
    assert_eq!(report.advantages.zero_variance_groups, 2);
    let fresh = setup.initial_adapter();
    // Weight decay alone still shrinks A; B stays zero, so the model is the reference.
    for (moved, start) in state.theta.factors().zip(fresh.factors()) {
        assert_eq!(moved.1.b.data(), start.1.b.data());
    }
}

/// A loss that is not finite skips the step, says which tensor it was, and leaves the policy alone.
#[test]
fn a_step_that_is_not_finite_is_skipped_and_named() {
    let mut setup = setup(&["ram.reward_multiplier=3e38"]);
    let mut state = State::new(&setup);
    let start = state.clone();
    let report = setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    let named = report.skipped.expect("the gradient overflows");
    assert!(named.contains("lora_"), "{named}");
    assert_eq!((state.epoch, state.moments.steps), (1, 0));
    assert!(state.theta.tensors().zip(start.theta.tensors()).all(|(a, b)| a.data() == b.data()));
}

/// After the first update the lagged policy is the trained one, bit for bit: its first decay is 0.
#[test]
fn the_lagged_policy_copies_the_first_update() {
    let mut setup = setup(&[]);
    let mut state = State::new(&setup);
    setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    assert!(state.old.tensors().zip(state.theta.tensors()).all(|(o, t)| o.data() == t.data()));
    setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    assert!(state.old.tensors().zip(state.theta.tensors()).any(|(o, t)| o.data() != t.data()));
}

/// T23: a reward that the model can move rises steadily over 50 updates: the tiny model learns to draw pictures that compress
/// well.
#[test]
fn t23_a_simple_reward_rises_steadily_over_fifty_updates() {
    let model = format!("model={}", concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny-sd3"));
    let mut setup = setup(&[
        &model,
        "optimizer.lr=1e-3",
        "lora.rank=8",
        "lora.alpha=16.0",
        "rollout.resolution=64",
        "rollout.num_images_per_prompt=8",
        "rollout.num_prompts_per_epoch=3",
        "rollout.num_inference_steps=6",
        "rollout.batch_size=12",
        "rollout.guidance_scale=1.0",
        "train.batch_size=16",
        "ram.reward_multiplier=5.0",
        "eval.num_images_per_prompt=6",
        "eval.num_inference_steps=6",
    ]);
    let mut state = State::new(&setup);
    let eval = |setup: &mut Setup, adapter: &_| {
        let scores = setup.evaluate(adapter, &Interrupt::never()).unwrap().scores.avg;
        scores.iter().sum::<f64>() / scores.len() as f64
    };
    let before = eval(&mut setup, &state.theta);
    let mut rewards = vec![before];
    for update in 1..=50 {
        setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
        if update % 10 == 0 {
            rewards.push(eval(&mut setup, &state.theta));
        }
    }
    println!("held-out reward at the start and every ten updates: {rewards:.5?}");
    assert!(rewards.is_sorted_by(|a, b| a < b), "{rewards:?}");
    assert!(rewards[5] > before + 0.1 * before.abs(), "{rewards:?}");
}
