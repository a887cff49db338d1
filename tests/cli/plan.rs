//! `--device plan:CHIP`: what a run would take on a GPU that is not there.

use super::{refuses, says};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What `train --dry-run` says of a config, by the names of its predicted lines.
fn prediction(config: &str, device: &str, set: &[&str]) -> (String, impl Fn(&str) -> f64) {
    let config = format!("{ROOT}/configs/{config}.toml");
    let mut args = vec!["train", "--config", &config, "--dry-run", "--device", device, "--usd-per-hour", "2"];
    if !set.is_empty() {
        args.extend(["--set"].iter().chain(set));
    }
    let out = says(&args);
    let lines: Vec<String> = out.lines().map(str::to_string).collect();
    let number = move |name: &str| {
        let line = lines.iter().find_map(|l| l.strip_prefix(&format!("  predicted {name}")));
        let line = line.unwrap_or_else(|| panic!("no line '{name}' in {lines:#?}"));
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    (out, number)
}

#[test]
fn a_run_at_full_size_is_planned_and_predicted_without_weights() {
    let (out, number) = prediction("ram_pickscore", "plan:h100", &[]);
    for words in [
        "model: there is no models/stable-diffusion-3.5-medium; planned with the shapes of sd3.5-medium:shapes",
        "prompts.train: there is no data/pickscore/train.txt",
        "rewards.pickscore.model: there is no models/PickScore_v1; planned with the shapes of clip-vit-h-14:shapes",
        "memory (planned, not measured):",
        "prediction for one H100 SXM 80 GB: nothing here was measured",
        "not counted: rewards and files on the processor",
    ] {
        assert!(out.contains(words), "'{words}' is not in: {out}");
    }
    let after = out.split("prediction for").nth(1).unwrap().lines().skip(1);
    assert!(after.filter(|l| !l.contains("not counted")).all(|l| l.starts_with("  predicted ")), "{out}");
    let (seconds, images, usd) = (number("time per epoch"), number("images per second"), number("cost per epoch"));
    assert!((seconds * images / 1152.0 - 1.0).abs() < 0.01, "{seconds} {images}");
    assert!((usd - seconds / 1800.0).abs() < 1e-3, "{usd} {seconds}");
    // No less than at the peak (performance.md 4.3), and on a chip with faster memory.
    assert!((2.27..10.0).contains(&number("rollout forward per row")), "{out}");
    let (_, on_h200) = prediction("ram_pickscore", "plan:h200", &[]);
    assert!(on_h200("time per epoch") < seconds);
    // Half the steps, about half the rollout.
    let (_, half) = prediction("ram_pickscore", "plan:h100", &["rollout.num_inference_steps=10"]);
    let ratio = half("  rollout") / number("  rollout");
    assert!((0.49..0.52).contains(&ratio), "{ratio}");
}

#[test]
fn a_small_run_is_predicted_from_its_own_folder() {
    let (out, number) = prediction("tiny/ram_pickscore", "plan:a100-40gb", &[]);
    assert!(!out.contains("shapes") && number("time per epoch") > 0.0, "{out}");
}

#[test]
fn what_does_not_fit_on_the_chip_is_refused_with_what_does() {
    let config = format!("{ROOT}/configs/ram_pickscore.toml");
    let args = ["train", "--config", &config, "--dry-run", "--device", "plan:a100-40gb"];
    let set = ["--set", "train.batch_size=64", "train.activation_checkpointing=none"];
    let output = super::engine(&[&args[..], &set[..]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    super::check_line(stderr.trim_end(), &["the run needs", "on A100 SXM 40 GB (planned)", "train.batch_size = "]);
}

#[test]
fn nothing_runs_on_a_chip_that_is_not_there() {
    let config = format!("{ROOT}/configs/tiny/ram_jpeg.toml");
    refuses(&["train", "--config", &config, "--device", "plan:h100"], &["plan:h100", "--dry-run"]);
    refuses(&["doctor", "--device", "plan:a100"], &["plan:a100", "nothing is computed there"]);
    refuses(&["doctor", "--device", "plan:h10"], &["no chip 'h10'", "h100, h200, a100", "did you mean 'h100'"]);
    refuses(&["doctor", "--device", "plan"], &["plan", "plan:CHIP"]);
    let dry = ["train", "--config", &config, "--dry-run", "--device", "plan:h100"];
    refuses(&[&dry[..], &["--usd-per-hour=-1"]].concat(), &["--usd-per-hour"]);
}

#[test]
fn an_outline_is_no_model() {
    let sample = ["sample", "--model", "sd3.5-medium:shapes", "--device", "cpu", "--prompt", "a", "--out", "/tmp/none"];
    refuses(&sample, &["there are only shapes", "--dry-run"]);
}
