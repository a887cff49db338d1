use engine::config::{self, Job};
use engine::device::Device;
use engine::io::image::RgbImage;
use engine::models::lora::{AdapterBank, Slot};
use engine::ops::copy;
use engine::train::guard::Interrupt;
use engine::train::setup::{Setup, check};
use engine::train::state::State;

use super::write_config;
use crate::parity::{bits, devices};

fn setup(changes: &[&str]) -> Setup {
    setup_on(&Device::Cpu, changes)
}

pub(super) fn setup_on(device: &Device, changes: &[&str]) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let path = write_config(dir.path(), "");
    let changes: Vec<String> = changes.iter().map(|c| c.to_string()).collect();
    check(config::load(&path, &changes).unwrap(), Job::Train).unwrap().load(device).unwrap()
}

fn images(setup: &mut Setup, adapter: Option<(&AdapterBank, Slot)>) -> Vec<RgbImage> {
    setup.evaluate(adapter, &Interrupt::never()).unwrap().images
}

/// The numbers of a slot as they are now.
fn numbers(state: &State, slot: Slot) -> Vec<u8> {
    bits(state.bank.numbers(slot))
}

/// T10: only the adapter's tensors change.
#[test]
fn t10_training_leaves_the_base_alone() {
    let mut setup = setup(&[]);
    let (before, mut state) = (images(&mut setup, None), State::new(&setup));
    let start = numbers(&state, Slot::Theta);
    for _ in 0..2 {
        setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    }
    assert_eq!(before, images(&mut setup, None));
    assert!(numbers(&state, Slot::Theta) != start);
}

/// T11: an adapter whose B is zero is the reference, and so is none; another adapter in between changes nothing.
#[test]
fn t11_without_its_adapter_the_model_is_the_reference() {
    let mut setup = setup(&[]);
    let mut state = State::new(&setup);
    let mut fresh = AdapterBank::new(state.bank.layout().clone(), state.bank.scale());
    fresh.set(Slot::Theta, copy::owned(state.bank.numbers(Slot::Theta)));
    let reference = images(&mut setup, None);
    assert_eq!(images(&mut setup, Some((&fresh, Slot::Theta))), reference);
    setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    assert_ne!(images(&mut setup, Some((&state.bank, Slot::Theta))), reference);
    assert_eq!(images(&mut setup, Some((&fresh, Slot::Theta))), reference);
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
                images(&mut setup, Some((&state.bank, Slot::Average)));
            }
        }
        state.to_checkpoint(&setup).unwrap()
    };
    let (with, without) = (run(true), run(false));
    assert!(with.tensors.iter().zip(&without.tensors).all(|(a, b)| a.0 == b.0 && bits(a.1) == bits(b.1)));
}

/// T6: with nothing to tell images apart the gradient is zero at the start and the policy does not move.
#[test]
fn t6_a_constant_reward_moves_nothing() {
    let mut setup = setup(&["rewards.jpeg_compressibility=0"]);
    let mut state = State::new(&setup);
    let report = setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    assert_eq!((report.loss, report.grad_norm), (0.0, 0.0));
    assert_eq!(report.advantages.zero_variance_groups, 2);
    // Weight decay alone still shrinks A; B stays zero, so the model is the reference.
    let factors = state.bank.named(Slot::Theta, setup.pipeline.network.modules());
    let b: Vec<_> = factors.iter().filter(|(name, _)| name.ends_with("lora_B.weight")).collect();
    assert!(!b.is_empty() && b.iter().all(|(_, t)| t.to_host().iter().all(|v| *v == 0.0)));
}

/// A loss that is not finite skips the step, says which tensor it was, and leaves the policy alone.
#[test]
fn a_step_that_is_not_finite_is_skipped_and_named() {
    for device in devices() {
        let mut setup = setup_on(&device, &["ram.reward_multiplier=3e38", "lora.alpha=1000000.0"]);
        let mut state = State::new(&setup);
        let start = numbers(&state, Slot::Theta);
        let report = setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
        let named = report.skipped.expect("the gradient overflows");
        assert!(named.contains("lora_"), "{named}");
        assert_eq!((state.epoch, state.moments.steps), (1, 0));
        assert!(numbers(&state, Slot::Theta) == start);
    }
}

/// After the first update the lagged policy is the trained one, bit for bit: its first decay is 0.
#[test]
fn the_lagged_policy_copies_the_first_update() {
    let mut setup = setup(&[]);
    let mut state = State::new(&setup);
    setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    assert!(numbers(&state, Slot::Old) == numbers(&state, Slot::Theta));
    setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    assert!(numbers(&state, Slot::Old) != numbers(&state, Slot::Theta));
}

/// What the rollout computed and what training computes at the same point are the same bits, whatever the batches.
#[test]
fn t24_rollout_and_training_have_the_same_velocities_at_every_batch_size() {
    for (rollout, train) in [(1, 32), (3, 1), (32, 3), (32, 32)] {
        let batches = [format!("rollout.batch_size={rollout}"), format!("train.batch_size={train}")];
        let images = ["rollout.num_prompts_per_epoch=4", "rollout.num_images_per_prompt=24"];
        let mut setup = setup(&[&batches[0], &batches[1], images[0], images[1]]);
        let mut state = State::new(&setup);
        // After the first update the policy differs from the reference.
        for _ in 0..2 {
            let report = setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
            assert_eq!(report.deviation, Some(0.0), "rollout {rollout}, training {train}");
        }
    }
}

/// A short run of the tiny model on the reward of its config, with changes.
pub(super) fn simple(changes: &[&str]) -> Setup {
    const MODEL: &str = concat!("model=", env!("CARGO_MANIFEST_DIR"), "/models/tiny-sd3");
    let run = [
        MODEL,
        "optimizer.lr=2.5e-4",
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
    ];
    setup(&[&run, changes].concat())
}

/// The mean reward of the policy on held-out prompts.
pub(super) fn held_out(setup: &mut Setup, state: &State) -> f64 {
    let scores = setup.evaluate(Some((&state.bank, Slot::Theta)), &Interrupt::never()).unwrap().scores.weighted;
    scores.iter().sum::<f64>() / scores.len() as f64
}

/// T23: a reward that the model can move rises steadily over 50 updates: the tiny model learns to draw pictures that compress
/// well.
#[test]
fn t23_a_simple_reward_rises_steadily_over_fifty_updates() {
    let mut setup = simple(&[]);
    let mut state = State::new(&setup);
    let before = held_out(&mut setup, &state);
    let mut rewards = vec![before];
    for update in 1..=50 {
        setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
        if update % 10 == 0 {
            rewards.push(held_out(&mut setup, &state));
        }
    }
    println!("held-out reward at the start and every ten updates: {rewards:.5?}");
    assert!(rewards.is_sorted_by(|a, b| a < b), "{rewards:?}");
    assert!(rewards[5] > before + 0.1 * before.abs(), "{rewards:?}");
}
