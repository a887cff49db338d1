//! The memory and the graphs of a run on the interpreted GPU, seen from inside.

use std::path::Path;
use std::sync::Arc;

use engine::config::{self, Job};
use engine::device::gpu::vm::Vm;
use engine::device::{Device, Gpu};
use engine::models::lora::Slot;
use engine::train::guard::Interrupt;
use engine::train::plan::MemoryPlan;
use engine::train::setup::{Planned, check};
use engine::train::state::State;

use super::write_config;

/// An interpreted GPU with so much memory.
fn vm(memory: u64) -> (Device, Arc<Gpu>) {
    let gpu = Gpu::new(Box::new(Vm::with_memory((8, 0), ptxvm::Options::default(), memory))).unwrap();
    (Device::Gpu(gpu.clone()), gpu)
}

fn planned(folder: &Path, changes: &[&str]) -> Planned {
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    check(config::load(&write_config(folder, ""), &changes).unwrap(), Job::Train).unwrap()
}

/// What has been learnt.
fn numbers(state: &State) -> Vec<f32> {
    state.bank.numbers(Slot::Theta).to_host()
}

#[test]
fn a_run_on_the_gpu_takes_what_its_plan_says_and_its_epochs_are_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let never = Interrupt::never();
    let (device, gpu) = vm(1 << 30);
    let of = planned(dir.path(), &[]);
    let plan = MemoryPlan::of(&of, &device).unwrap();
    println!("{}", plan.table());
    assert!(plan.table().contains("on the device") && plan.overhead > 0);
    let mut setup = of.clone().load(&device).unwrap();
    let mut state = State::new(&setup);
    setup.evaluate(Some((&state.bank, Slot::Average)), &never).unwrap();
    let mut seen = vec![gpu.stats()];
    let mut first = Vec::new();
    for epoch in 0..4 {
        setup.train_epoch(&mut state, &never).unwrap();
        if epoch == 0 {
            first = numbers(&state);
        }
        seen.push(gpu.stats());
        println!("{:?}", gpu.stats());
    }
    device.check().unwrap();
    let ratio = plan.tensors as f64 / seen[1].peak as f64;
    println!("planned {} bytes, measured {}: {ratio:.3}", plan.tensors, seen[1].peak);
    assert!((ratio - 1.0).abs() < 0.05, "planned {} bytes, measured {}", plan.tensors, seen[1].peak);
    for (before, after) in seen[2..].iter().zip(&seen[3..]) {
        assert_eq!((before.peak, before.allocations), (after.peak, after.allocations), "steady state");
    }
    let [launches, replayed] =
        [seen[3].launches - seen[2].launches, seen[3].launches_replayed - seen[2].launches_replayed];
    println!("{replayed} of {launches} launches of the third epoch are replayed");
    assert!(replayed * 10 >= launches * 9, "{replayed} of {launches} launches");

    // All images in one batch: nothing is done beside anything else. And with encoders that leave.
    let mut of = planned(dir.path(), &["rollout.batch_size=6"]);
    let stay = MemoryPlan::of(&of, &device).unwrap().total();
    of.encoders_leave = true;
    let leave = MemoryPlan::of(&of, &device).unwrap().total();
    println!("encoders that stay {stay} bytes, that leave {leave}");
    assert!(leave < stay);
    of.encoders_leave = false;
    let (device, gpu) = vm((stay + leave) / 2);
    MemoryPlan::fitting(&mut of, &device).unwrap().check(&of, &device).unwrap();
    assert!(of.encoders_leave);
    let mut setup = of.load(&device).unwrap();
    let mut state = State::new(&setup);
    setup.train_epoch(&mut state, &never).unwrap();
    device.check().unwrap();
    println!("{:?}", gpu.stats());
    assert!(numbers(&state) == first, "the same with and without overlap, and with less memory");
}

#[test]
fn too_little_memory_of_a_gpu_is_named_with_what_fits() {
    let dir = tempfile::tempdir().unwrap();
    let mut of = planned(dir.path(), &[]);
    let (device, _) = vm(1 << 30);
    of.encoders_leave = true;
    let needed = MemoryPlan::of(&of, &device).unwrap().total();
    let refused = |memory: u64| {
        let (mut of, (device, _)) = (planned(dir.path(), &[]), vm(memory));
        MemoryPlan::fitting(&mut of, &device).unwrap().check(&of, &device).unwrap_err().to_string()
    };
    let line = refused(needed - 1);
    println!("{line}");
    assert!(line.starts_with("the run needs ") && line.contains(" are available on ptxvm; "), "{line}");
    assert!(line.ends_with(" fits"), "{line}");
    assert!(refused(1 << 20).ends_with("or a smaller model"), "{}", refused(1 << 20));
}
