use engine::config;
use engine::io::TensorFile;
use engine::train::guard::Interrupt;
use engine::train::setup::{Setup, plan};
use engine::train::state::State;

use super::write_config;
use crate::parity::fixture;

fn setup(changes: &[&str]) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let path = write_config(dir.path(), "");
    let changes: Vec<String> = changes.iter().map(|c| c.to_string()).collect();
    plan(config::load(&path, &changes).unwrap()).unwrap().load().unwrap()
}

/// Bits of every tensor of the model's files.
fn weights() -> Vec<Vec<u8>> {
    ["transformer", "vae"]
        .iter()
        .flat_map(|c| {
            let file =
                TensorFile::open_component(&fixture("pipeline/no_t5").join(c), "diffusion_pytorch_model").unwrap();
            file.entries().map(|(_, e)| e.raw().to_vec()).collect::<Vec<_>>()
        })
        .collect()
}

/// T10: only the adapter's tensors change.
#[test]
fn t10_training_leaves_the_base_weights_alone() {
    let mut setup = setup(&[]);
    let (before, mut state) = (weights(), State::new(&setup));
    let start = state.clone();
    for _ in 0..2 {
        setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    }
    assert_eq!(before, weights());
    assert!(state.theta.tensors().zip(start.theta.tensors()).any(|(a, b)| a.data() != b.data()));
}

/// T11: an adapter whose B is zero is the reference, and so is none; another adapter in between changes nothing.
#[test]
fn t11_without_its_adapter_the_model_is_the_reference() {
    let mut setup = setup(&[]);
    let mut state = State::new(&setup);
    let fresh = state.theta.clone();
    let run = |setup: &mut Setup, adapter: &_| setup.evaluate(adapter, &Interrupt::never()).unwrap().images;
    let reference = run(&mut setup, &fresh);
    setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    assert_ne!(run(&mut setup, &state.theta), reference);
    assert_eq!(run(&mut setup, &fresh), reference);
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

/// T23: a reward that the model can move rises within 50 updates.
#[test]
fn t23_a_simple_reward_rises_within_fifty_updates() {
    let mut setup = setup(&[
        "optimizer.lr=3e-3",
        "rollout.num_images_per_prompt=6",
        "ram.reward_multiplier=3.0",
        "rewards.jpeg_compressibility=100.0",
    ]);
    let mut state = State::new(&setup);
    let eval = |setup: &mut Setup, adapter: &_| {
        let scores = setup.evaluate(adapter, &Interrupt::never()).unwrap().scores.avg;
        scores.iter().sum::<f64>() / scores.len() as f64
    };
    let before = eval(&mut setup, &state.theta);
    let mut after = before;
    for update in 1..=50 {
        setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
        if update % 10 == 0 {
            after = eval(&mut setup, &state.theta);
            println!("after {update} updates: {after:.4} (before {before:.4})");
        }
    }
    assert!(after > before + 0.05 * before.abs(), "{before} to {after}");
}
