//! Published configs in folders where their files are not.

use std::path::Path;
use std::process::Output;

use super::{engine_in, refuses, says};
use crate::parity::fixture;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What `engine` says in `folder`, where it must succeed.
fn says_in(folder: &Path, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = engine_in(folder, args);
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// The one line with which `engine` refuses in `folder`.
fn error_in(folder: &Path, args: &[&str]) -> String {
    let Output { status, stderr, .. } = engine_in(folder, args);
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{stderr}");
    super::check_line(stderr.trim_end(), &[]);
    stderr
}

#[test]
fn a_published_config_is_planned_in_any_folder_by_each_of_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let plan = ["--dry-run", "--device", "plan:h100"];
    let said = ["ram_pickscore.toml", "ram_pickscore", "configs/ram_pickscore.toml"]
        .map(|name| says_in(folder.path(), &[&["train", "--config", name], &plan[..]].concat()));
    for words in ["taken: 'ram_pickscore', which is built in", "48 prompts x 24 = 1152", "predicted time per epoch"] {
        assert!(said[0].contains(words), "'{words}' is not in: {}", said[0]);
    }
    assert!(said.iter().all(|other| *other == said[0]));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a dry run writes nothing");
}

#[test]
fn what_a_published_config_needs_is_said_at_once_with_where_it_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let train = |name: &str| error_in(folder.path(), &["train", "--device", "cpu", "--config", name]);
    let e = train("ram_pickscore.toml");
    for words in
        ["hf download stabilityai/stable", "models/PickScore_v1", "data/pickscore/test.txt", "flow_grpo", "--set"]
    {
        assert!(e.contains(words), "'{words}' is not in: {e}");
    }
    // Its prompts are built in, its model is not.
    let e = train("tiny/ram_geneval");
    assert!(e.contains("model = models/tiny-sd3 (part of engine's repository") && !e.contains("prompts"), "{e}");
    let e = train("ram_ocr");
    for words in ["rewards.ocr.model = models/ppocr-en (tools/fetch_ppocr.sh", "prompts.train = data/ocr/train.txt"] {
        assert!(e.contains(words), "'{words}' is not in: {e}");
    }
}

#[test]
fn a_run_of_a_built_in_config_is_resumed_by_its_name_and_by_the_config_it_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let model = format!("model={}", fixture("pipeline/no_t5").display());
    let set = [
        "rollout.resolution=32",
        "rollout.num_prompts_per_epoch=2",
        "rollout.num_images_per_prompt=2",
        "rollout.num_inference_steps=2",
        "rollout.batch_size=2",
        "train.batch_size=2",
        "ram.num_noisings=1",
        "lora={rank=2,alpha=2}",
        "eval.num_prompts=1",
        "eval.num_inference_steps=2",
        "eval.num_images_per_prompt=1",
        "prompts.max_sequence_length=4",
    ];
    let train = |config: &str, more: &[&str]| {
        let args = ["train", "--device", "cpu", "--config", config, "--set", &model];
        says_in(folder.path(), &[&args[..], &set, more].concat())
    };
    let out = train("tiny/ram_jpeg.toml", &["num_epochs=1"]);
    assert!(
        out.contains("prompts.train: there is no configs/tiny/prompts_train.jsonl here; taken: built-in:tiny/"),
        "{out}"
    );
    let run = folder.path().join("outputs/ram_jpeg");
    let written = std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(written.contains("\"built-in:tiny/prompts_test.jsonl\""), "{written}");
    let out = train("tiny/ram_jpeg", &["num_epochs=2"]);
    assert!(out.contains("after epoch 1"), "{out}");
    // The same run where the prompts are files.
    let repository = [format!("prompts.train={ROOT}/configs/tiny/prompts_train.jsonl"), "num_epochs=3".into()];
    let more = [&repository[0], &repository[1], "--output-dir", "outputs/ram_jpeg"];
    let out = train("outputs/ram_jpeg/config.toml", &more.map(|s: &str| s));
    assert!(out.contains("after epoch 2"), "{out}");
    let lines = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(lines.lines().any(|l| l.contains("\"epoch\":3")), "{lines}");
}

#[test]
fn a_file_of_the_folder_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ram_pickscore.toml"), "algorithm = 'rma'\n").unwrap();
    for name in ["ram_pickscore.toml", "ram_pickscore"] {
        let e = error_in(folder.path(), &["train", "--dry-run", "--device", "plan:h100", "--config", name]);
        assert!(e.contains("ram_pickscore.toml:1: algorithm: unknown value 'rma'; did you mean 'ram'?"), "{e}");
    }
}

#[test]
fn a_mistyped_name_is_told_what_is_near_in_the_folder_and_in_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let train = |name: &str| error_in(folder.path(), &["train", "--config", name]);
    assert!(train("ram_pikscore.toml").contains("did you mean 'ram_pickscore', which is built in?"));
    assert!(train("ram_jpeg.toml").contains("did you mean 'tiny/ram_jpeg', which is built in?"));
    std::fs::write(folder.path().join("ram_pickscore2.toml"), "").unwrap();
    assert!(train("ram_pikscore2.toml").contains("did you mean 'ram_pickscore2.toml'? (built in: 'ram_pickscore')"));
    assert!(train("nothing like it").contains("see 'engine configs'"));
    let step = ["step", "--config", "ram_pikscore", "--inputs", "a", "--outputs", "b"];
    assert!(error_in(folder.path(), &step).contains("did you mean 'ram_pickscore', which is built in?"));
    refuses(
        &["configs", "--print", "ram_pikscore"],
        &["no config 'ram_pikscore' is built in", "did you mean 'ram_pickscore'?"],
    );
}

#[test]
fn every_published_config_is_listed_and_printed_as_its_file_is() {
    // The name of one may end like that of another.
    let list = format!("\n{}", says(&["configs"]));
    let mut printed = 0;
    for folder in ["configs", "configs/tiny"] {
        for entry in std::fs::read_dir(Path::new(ROOT).join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "toml") {
                continue;
            }
            let name = path.strip_prefix(format!("{ROOT}/configs")).unwrap().with_extension("");
            let name = name.to_str().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(says(&["configs", "--print", name]), text);
            let row = list.split(&format!("\n{name}\n")).nth(1).unwrap_or_else(|| panic!("{name} is not in: {list}"));
            let start: String = text.lines().next().unwrap().chars().skip(2).take(30).collect();
            let mut lines = row.lines();
            assert!(lines.next().unwrap().starts_with(&format!("    {start}")), "{row}");
            let algorithm = text.split("algorithm = \"").nth(1).unwrap().split('"').next().unwrap();
            assert!(lines.next().unwrap().starts_with(&format!("    {algorithm} on models/")), "{row}");
            printed += 1;
        }
    }
    assert!(printed >= 6);
    assert!(!list.contains("not in this version"), "{list}");
}

/// A config that was printed and changed still finds the prompts it came with.
#[test]
fn prompts_of_published_configs_are_at_hand_for_other_configs_and_evaluations() {
    let folder = tempfile::tempdir().unwrap();
    let text = says(&["configs", "--print", "tiny/ram_jpeg"]);
    std::fs::write(folder.path().join("my.toml"), text.replace("batch_size = 32", "batch_size = 16")).unwrap();
    let model = format!("model={ROOT}/models/tiny-sd3");
    let out =
        says_in(folder.path(), &["train", "--config", "my", "--dry-run", "--device", "plan:h100", "--set", &model]);
    assert!(out.contains("taken: built-in:tiny/prompts_test.jsonl") && !out.contains("shapes"), "{out}");
    let model = fixture("pipeline/no_t5");
    let eval = |prompts: &str| {
        let args = ["eval", "--model", model.to_str().unwrap(), "--device", "cpu", "--rewards", "jpeg_compressibility"];
        let few = ["--num-prompts", "2", "--steps", "1", "--resolution", "32", "--guidance", "1", "--prompts", prompts];
        says_in(folder.path(), &[&args[..], &few].concat())
    };
    assert!(eval("configs/tiny/prompts_test.jsonl").ends_with(&eval("built-in:tiny/prompts_test.jsonl")));
    let args = [
        "score",
        "--reward",
        "jpeg_compressibility",
        "--images",
        "a.png",
        "--prompts",
        "built-in:tiny/prompts_tets.jsonl",
    ];
    assert!(error_in(folder.path(), &args).contains("did you mean 'tiny/prompts_test.jsonl'?"));
}
