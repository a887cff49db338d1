//! Training on images that were sampled in fp8.

use engine::device::Device;
use engine::models::lora::Slot;
use engine::train::guard::Interrupt;
use engine::train::setup::check;
use engine::train::state::State;
use engine::{config, config::Job};

use super::theory::{held_out, setup_on, simple};
use super::write_config;
use crate::parity::{bits, devices};

const FP8: [&str; 2] = ["rollout.weights=fp8", "train.compute=bf16"];

#[test]
fn epochs_with_rollouts_in_fp8_say_what_that_changes_and_move_the_policy() {
    let [cpu, hopper, _] = devices();
    for device in [cpu, hopper] {
        let of = |changes: &[&str]| {
            let mut setup = setup_on(&device, changes);
            let mut state = State::new(&setup);
            let start = bits(state.bank.numbers(Slot::Theta));
            let deviations = [0; 2].map(|_| {
                let report = setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
                assert_eq!(report.skipped, None);
                report.deviation.unwrap()
            });
            assert!(bits(state.bank.numbers(Slot::Theta)) != start && state.moments.steps == 2);
            deviations
        };
        let (fp8, bf16) = (of(&FP8), of(&FP8[1..]));
        println!("{device:?}: velocities differ by {fp8:?} with fp8 rollouts, by {bf16:?} without");
        assert_eq!(bf16, [0.0; 2]);
        // Velocities of this model are about 1; e4m3 rounds to 4 bits.
        assert!(fp8.iter().all(|d| *d > 1e-4 && *d < 0.5), "{fp8:?}");
    }
}

#[test]
fn the_same_run_gives_the_same_bits_at_every_rollout_batch() {
    let run = |batch: &str| {
        let mut setup = setup_on(&Device::Cpu, &[FP8[0], FP8[1], batch]);
        let mut state = State::new(&setup);
        setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
        bits(state.bank.numbers(Slot::Theta))
    };
    assert!(run("rollout.batch_size=3") == run("rollout.batch_size=1"));
}

#[test]
fn a_gpu_without_fp8_and_activations_that_do_not_go_with_it_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_config(dir.path(), "");
    let refused = |device: &Device, changes: &[&str]| {
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let planned = check(config::load(&path, &changes).unwrap(), Job::Train).unwrap();
        format!("{:#}", planned.load(device).err().expect("it is refused"))
    };
    let portable = Device::vm_of((8, 0), ptxvm::Options::default()).unwrap();
    let e = refused(&portable, &FP8);
    assert!(
        e.starts_with("key rollout.weights: fp8 weights need the fp8 tensor cores of compute capability 9.0"),
        "{e}"
    );
    let e = refused(&devices()[1], &FP8[..1]);
    assert!(e.ends_with("these are in f32; set train.compute = \"bf16\""), "{e}");
}

/// A reward that the model can move rises although the images it learns from were sampled in fp8; it is measured without.
#[test]
fn a_policy_learns_from_images_sampled_in_fp8() {
    let mut setup = simple(&["rollout.weights=fp8"]);
    let mut state = State::new(&setup);
    let before = held_out(&mut setup, &state);
    for _ in 0..25 {
        setup.train_epoch(&mut state, &Interrupt::never()).unwrap();
    }
    let after = held_out(&mut setup, &state);
    println!("held-out reward {before:.5} before, {after:.5} after 25 updates");
    assert!(after > before + 0.1 * before.abs(), "{before} {after}");
}
