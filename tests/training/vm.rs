//! Whole runs through the launch code of a GPU, on the device that interprets the PTX: every kernel, argument and grid, the
//! memory and the graphs are those of a real one.

use std::path::Path;

use serde_json::Value;

use super::resume::signal_saves;
use super::{assert_success, checkpoint_bytes, train, train_command, write_config};

/// The lines of a run's log that have a loss.
pub fn epochs(run: &Path) -> Vec<Value> {
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    lines.filter(|l| l["loss"].is_f64()).collect()
}

pub fn state(run: &Path, epoch: u32) -> Vec<u8> {
    checkpoint_bytes(run, epoch).into_iter().find(|(name, _)| name == "state.safetensors").unwrap().1
}

/// Sums of f32 products over as many terms as a row of this model has, in another order, differ by `terms·2^-24` at most
/// relative to their size; three epochs of optimiser steps, whose size hardly depends on the gradient's, add up little.
const AGREES: f64 = 2e-3;

/// Fails if an epoch of `what` on the interpreted GPU is not the processor's.
pub fn check_agreement(on_vm: &Value, on_cpu: &Value, what: &str) {
    for key in ["loss", "grad_norm", "reward_mean"] {
        let (got, want) = (on_vm[key].as_f64().unwrap(), on_cpu[key].as_f64().unwrap());
        assert!((got - want).abs() <= AGREES * want.abs(), "{what}, {key}: {got} on vm, {want} on the cpu");
    }
}

#[test]
fn a_run_on_the_interpreted_gpu_is_the_cpu_s_and_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let [cpu, whole, parts] = ["cpu", "whole", "parts"].map(|name| dir.path().join(name));
    assert_success(&train(&config, &cpu, &["--device", "cpu"]));
    assert_success(&train(&config, &whole, &["--device", "vm"]));
    for (on_vm, on_cpu) in epochs(&whole).iter().zip(&epochs(&cpu)) {
        check_agreement(on_vm, on_cpu, "ram");
        assert_eq!(on_vm["rollout_train_deviation"], 0.0, "rollout and training see the same velocity");
    }
    assert_eq!(epochs(&whole).len(), 3);

    assert_success(&train(&config, &parts, &["--device", "vm", "--set", "num_epochs=1"]));
    assert_success(&train(&config, &parts, &["--device", "vm"]));
    assert_eq!(checkpoint_bytes(&whole, 3), checkpoint_bytes(&parts, 3));
}

#[test]
fn results_on_the_interpreted_gpu_do_not_depend_on_batches_or_checkpointing() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let run = |name: &str, change: &str| {
        let run = dir.path().join(name);
        assert_success(&train(&config, &run, &["--device", "vm", "--set", "num_epochs=1", change]));
        state(&run, 1)
    };
    let base = run("a", "rollout.batch_size=3");
    assert!(base == run("b", "rollout.batch_size=1"), "rollout batch");
    assert!(base == run("c", "train.activation_checkpointing=block"), "checkpointing by block");
    assert!(base == run("d", "train.activation_checkpointing=selective"), "selective checkpointing");
}

#[test]
fn launches_one_by_one_give_the_bits_of_graphs() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let states = ["0", "1"].map(|graphs| {
        let run = dir.path().join(graphs);
        let mut command = train_command(&config, &run, &["--device", "vm", "--set", "num_epochs=1"]);
        assert_success(&command.env("ENGINE_GRAPHS", graphs).output().unwrap());
        state(&run, 1)
    });
    assert!(states[0] == states[1]);
}

#[test]
fn a_signal_saves_a_run_on_the_interpreted_gpu() {
    signal_saves("-INT", 130, &["--device", "vm"]);
}
