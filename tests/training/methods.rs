//! Runs of the methods whose losses look at pairs and groups, and of those with more than one lagged policy.

use std::path::{Path, PathBuf};

use super::vm::{check_agreement, epochs};
use super::{assert_success, checkpoint_bytes, train, write_config};

/// Each method with settings of a small run: two prompts of three images.
const METHODS: [(&str, &str); 7] = [
    ("sft", "num_timesteps = 4, updates_per_epoch = 2"),
    ("online_sft", "num_timesteps = 4, updates_per_epoch = 2, ref_update_step = 3"),
    ("rwr", "num_timesteps = 2"),
    ("dpo", "num_timesteps = 2, beta = 5.0"),
    ("online_dpo", "num_timesteps = 2, updates_per_epoch = 2, ref_update_step = 3"),
    ("dgpo", "num_timesteps = 2, switch_ema_ref = 1, kl_guidance_scale = 2.0"),
    ("crd", "num_timesteps = 2, sampling_decay = '1-0.5-0.1-0.9'"),
];

/// Those that look at a sample alone, of the same size, and what samples for them.
const OF_SAMPLES: [(&str, &str, &str); 6] = [
    ("awm", "num_timesteps = 2", "euler"),
    ("nft", "", "euler"),
    ("flow_grpo", "", "flow"),
    ("flow_grpo_fast", "window_size = 2, window_range = [0, 3]", "flow"),
    ("cps", "", "cps"),
    ("grpo_guard", "", "flow"),
];

/// The config of a run of three epochs of `method`.
fn config(folder: &Path, method: &str, keys: &str) -> PathBuf {
    let path = write_config(folder, "");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("algorithm = 'ram'", &format!("algorithm = '{method}'"));
    let text = text.replace("ram = { reward_multiplier = 5.0, num_noisings = 2 }", &format!("{method} = {{ {keys} }}"));
    std::fs::write(&path, text).unwrap();
    path
}

/// A number of the first epoch that was logged.
fn logged(run: &Path, name: &str) -> f64 {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    lines.filter_map(|line| line.get(name)?.as_f64()).next().unwrap_or_else(|| panic!("no {name}: {log}"))
}

/// T22, of all that a method keeps: reference, lagged policies, and where their schedules are.
#[test]
fn t22_methods_of_pairs_and_groups_go_on_bit_for_bit() {
    for (method, keys) in METHODS {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), method, keys);
        let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
        assert_success(&train(&config, &whole, &[]));
        assert_success(&train(&config, &parts, &["--set", "num_epochs=1"]));
        assert_success(&train(&config, &parts, &["--set", "num_epochs=2"]));
        assert_success(&train(&config, &parts, &["--threads", "1"]));
        assert_eq!(checkpoint_bytes(&whole, 3), checkpoint_bytes(&parts, 3), "{method}");
        assert!(logged(&whole, "grad_norm") > 0.0, "{method}: nothing was learnt");
    }
}

/// Also where a pair or a group is divided: its loss then comes from a pass of its own.
#[test]
fn what_a_pair_or_group_teaches_does_not_depend_on_the_size_of_a_batch() {
    for (method, keys) in METHODS.into_iter().filter(|(method, _)| ["dpo", "dgpo", "crd"].contains(method)) {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), method, keys);
        let of = |size: &str| {
            let run = dir.path().join(size);
            // A second step would start from weights that differ by rounding.
            let changes =
                ["num_epochs=1".into(), format!("{method}.updates_per_epoch=1"), format!("train.batch_size={size}")];
            assert_success(&train(&config, &run, &["--set", &changes[0], &changes[1], &changes[2]]));
            ["loss", "grad_norm"].map(|name| logged(&run, name))
        };
        let whole = of("4");
        for size in ["1", "2"] {
            let divided = of(size);
            for (a, b) in whole.into_iter().zip(divided) {
                // Of the gradient, sums of f32 in another order.
                assert!((a - b).abs() <= 1e-5 * a.abs(), "{method} in batches of {size}: {a} {b}");
            }
            // The loss is a sum of f64, of the same numbers.
            assert!((whole[0] - divided[0]).abs() <= 1e-12 * whole[0].abs(), "{method} in batches of {size}");
        }
    }
}

#[test]
fn an_epoch_of_every_method_on_the_interpreted_gpu_is_the_cpu_s() {
    let deterministic = METHODS.into_iter().map(|(method, keys)| (method, keys, "euler"));
    for (method, keys, sampler) in OF_SAMPLES.into_iter().chain(deterministic) {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), method, keys);
        let noise = format!("rollout.noise_level={}", if sampler == "euler" { 0.0 } else { 0.7 });
        let sampler = format!("rollout.sampler='{sampler}'");
        let [cpu, vm] = ["cpu", "vm"].map(|device| {
            let run = dir.path().join(device);
            assert_success(&train(&config, &run, &["--device", device, "--set", "num_epochs=1", &sampler, &noise]));
            epochs(&run).remove(0)
        });
        check_agreement(&vm, &cpu, method);
    }
}

#[test]
fn keys_that_contradict_a_method_are_refused_in_one_line() {
    let cases = [
        (
            "dpo",
            "ref_update_step = 40",
            "dpo.ref_update_step is 40, but 'dpo' keeps the policy that it starts from; the one that moves it is 'online_dpo'",
        ),
        ("sft", "ref_update_step = 7", "the one that moves it is 'online_sft'"),
        ("online_dpo", "ref_update_step = 0", "online_dpo.ref_update_step is 0, expected at least 1"),
        ("sft", "num_timesteps = 2, updates_per_epoch = 3", "sft.updates_per_epoch is 3, expected 1 to 2"),
        ("crd", "old_decay = '0-1'", "found '0-1', expected start-value-slope-cap such as 75-0-0.0075-0.999"),
        ("dgpo", "timestep_range = [0.5, 0.2]", "dgpo.timestep_range is [0.5, 0.2], expected two numbers from 0 to 1"),
        ("dgpo", "kl_guidance_scale = 0.5", "dgpo.kl_guidance_scale is 0.5, expected 1 to 100"),
        ("crd", "temprature = 1.0", "unknown key 'temprature'; did you mean 'temperature'?"),
    ];
    for (method, keys, want) in cases {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let out = train(&config(dir.path(), method, keys), &run, &[]);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{error}");
        assert!(error.contains(want) && error.lines().count() == 1, "{method} {keys}: {error}");
        assert!(!run.exists());
    }
}
