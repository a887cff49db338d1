//! f16 with a scaled loss.

use engine::device::Device;
use engine::models::lora::Slot;
use engine::train::guard::Interrupt;
use engine::train::report::EpochReport;
use engine::train::scaler::LossScale;
use engine::train::setup::Setup;
use engine::train::state::State;
use serde_json::json;

use super::theory::setup_on;
use super::{assert_success, checkpoint_bytes, train, write_config};
use crate::parity::{bits, devices};

fn setup(device: &Device, multiplier: f32) -> Setup {
    setup_on(device, &["train.compute=f16", &format!("ram.reward_multiplier={multiplier}")])
}

fn epoch(setup: &mut Setup, state: &mut State) -> anyhow::Result<EpochReport> {
    setup.train_epoch(state, &Interrupt::never())
}

fn theta(state: &State) -> Vec<u8> {
    bits(state.bank.numbers(Slot::Theta))
}

fn scale_of(state: &State) -> f64 {
    state.loss_scale.as_ref().unwrap().scale()
}

#[test]
fn where_activations_are_in_f32_the_scale_changes_no_bit() {
    let run = |is_scaled: bool| {
        let mut setup = setup(&Device::Cpu, 5.0);
        let mut state = State::new(&setup);
        if !is_scaled {
            state.loss_scale = None;
        }
        let reports = [0; 2].map(|_| epoch(&mut setup, &mut state).unwrap());
        (reports.map(|r| (r.loss, r.grad_norm)), theta(&state))
    };
    assert!(run(true) == run(false));
}

#[test]
fn a_gradient_below_the_range_of_f16_is_right_with_the_scale_and_lost_without() {
    // Of 12 points of 256 numbers: about 1e-8, where f16 ends at 6e-8. At the start the gradient is linear in the multiplier.
    let [_, gpu, _] = devices();
    let norm = |multiplier: f32, is_scaled: bool| {
        let mut setup = setup(&gpu, multiplier);
        let mut state = State::new(&setup);
        if !is_scaled {
            state.loss_scale = None;
        }
        epoch(&mut setup, &mut state).unwrap().grad_norm
    };
    let (exact, scaled, plain) = (1e-5 * norm(1.0, true), norm(1e-5, true), norm(1e-5, false));
    println!("gradient norm {exact:e}; {scaled:e} with a scale, {plain:e} without");
    // Each of some 10 ops on the way rounds to 11 bits.
    assert!((scaled - exact).abs() <= 10.0 * 2f64.powi(-11) * exact, "{scaled:e} against {exact:e}");
    assert!(plain < 0.5 * exact, "{plain:e} against {exact:e}");
}

#[test]
fn a_gradient_that_overflows_is_skipped_and_scaled_less_until_it_fits() {
    let [_, gpu, _] = devices();
    let mut setup = setup(&gpu, 3000.0);
    let mut state = State::new(&setup);
    let (start, mut scales) = (theta(&state), vec![scale_of(&state)]);
    while state.moments.steps == 0 {
        assert!(theta(&state) == start && scales.len() < 8);
        let report = epoch(&mut setup, &mut state).unwrap();
        assert_eq!(report.skipped, None);
        assert_eq!(
            (u64::from(report.overflows), state.moments.steps),
            if report.overflows == 1 { (1, 0) } else { (0, 1) }
        );
        scales.push(scale_of(&state));
    }
    println!("{scales:?}");
    assert!(theta(&state) != start && scales[1] == 32768.0);
    let halved = scales.windows(2).filter(|s| s[1] == s[0] / 2.0).count();
    assert_eq!((scales[scales.len() - 2], halved), (scales[scales.len() - 1], scales.len() - 2));
}

#[test]
fn what_overflows_at_the_least_scale_ends_the_run_with_the_reason() {
    let mut setup =
        setup_on(&Device::Cpu, &["train.compute=f16", "ram.reward_multiplier=3e38", "lora.alpha=1000000.0"]);
    let mut state = State::new(&setup);
    state.loss_scale = Some(LossScale::from_json(&json!({"scale": 2.0, "steps": 5})).unwrap());
    assert_eq!(epoch(&mut setup, &mut state).unwrap().overflows, 1);
    let e = epoch(&mut setup, &mut state).err().unwrap().to_string();
    assert!(
        e.starts_with("the gradient overflows f16 though the loss is not scaled any more (") && e.contains("lora_"),
        "{e}"
    );
    assert_eq!((state.epoch, state.moments.steps), (1, 0));
}

#[test]
fn a_scaled_run_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let f16 = ["--device", "vm", "--set", "train.compute=f16", "ram.reward_multiplier=3000"];
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    assert_success(&train(&config, &whole, &[&f16[..], &["num_epochs=2"]].concat()));
    assert_success(&train(&config, &parts, &[&f16[..], &["num_epochs=1"]].concat()));
    assert_success(&train(&config, &parts, &[&f16[..], &["num_epochs=2"]].concat()));
    assert_eq!(checkpoint_bytes(&whole, 2), checkpoint_bytes(&parts, 2));
    let metrics = std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let epochs: Vec<serde_json::Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let scales: Vec<f64> = epochs.iter().filter_map(|e| e["loss_scale"].as_f64()).collect();
    assert!(scales[0] < 65536.0 && scales.len() == 2, "{scales:?}");
}
