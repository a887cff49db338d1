//! What a reward saw, and what it makes of what others have seen.

use serde_json::{Value, json};

use super::{engine, refuses, says};
use crate::parity::fixture;

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_geneval_saw_in_a_picture_is_written_and_judged_again_gives_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (prompts, dump) = (folder.path().join("p.jsonl"), folder.path().join("seen.json"));
    let image = fixture("shapes/clean_counting.png");
    let record = json!({"prompt": "two circles", "tag": "counting", "include": [{"class": "circle", "count": 2}]});
    std::fs::write(&prompts, record.to_string()).unwrap();
    let shapes = "reward_models.geneval.detector=shapes";
    let args = ["score", "--reward", "geneval", "--set", shapes, "--prompts", text(&prompts), "--images", text(&image)];
    let line: Value = serde_json::from_str(&says(&[&args[..], &["--dump", text(&dump)]].concat())).unwrap();
    let seen: Value = serde_json::from_slice(&std::fs::read(&dump).unwrap()).unwrap();
    let detections = seen[text(&image)].as_array().unwrap();
    assert!(!detections.is_empty());
    for object in detections {
        assert!(
            object["class"].is_string() && object["score"].is_f64() && object["box"].as_array().unwrap().len() == 4
        );
        assert!(object["color"].is_string() || object["color"].is_null());
    }
    let given = folder.path().join("given.json");
    std::fs::write(&given, json!([{"metadata": record, "detections": detections}]).to_string()).unwrap();
    for more in [&[][..], &["--prompts", text(&prompts)]] {
        let args = [&["score", "--reward", "geneval", "--detections", text(&given)][..], more].concat();
        let again: Value = serde_json::from_str(&says(&args)).unwrap();
        assert_eq!((&again["score"], &again["extra"]), (&line["score"], &line["extra"]));
        assert_eq!(again["image"], Value::Null);
    }
}

#[test]
fn only_geneval_judges_detections_and_not_every_reward_has_something_to_show() {
    let folder = tempfile::tempdir().unwrap();
    let given = folder.path().join("given.json");
    std::fs::write(&given, "[{\"detections\": []}]").unwrap();
    refuses(
        &["score", "--reward", "jpeg_compressibility", "--detections", text(&given)],
        &["--detections: only geneval"],
    );
    refuses(
        &["score", "--reward", "geneval", "--detections", text(&given)],
        &["given.json: entry 1: no key 'metadata'"],
    );
    let prompts = folder.path().join("p.txt");
    std::fs::write(&prompts, "x").unwrap();
    let (image, dump) = (fixture("shapes/clean_counting.png"), folder.path().join("d.json"));
    let args = ["score", "--reward", "jpeg_compressibility", "--prompts", text(&prompts), "--images", text(&image)];
    refuses(&[&args[..], &["--dump", text(&dump)]].concat(), &["--dump", "jpeg_compressibility has nothing to show"]);
    assert!(!dump.exists());
    // Neither images nor detections.
    assert_eq!(engine(&["score", "--reward", "geneval"]).status.code(), Some(2));
}

#[test]
fn the_detector_for_photographs_says_where_its_weights_come_from() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("p.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"a dog\", \"include\": [{\"class\": \"dog\", \"count\": 1}]}").unwrap();
    let image = fixture("shapes/clean_counting.png");
    let args = ["score", "--reward", "geneval", "--prompts", text(&prompts), "--images", text(&image)];
    let words = [
        "rewards.geneval.model: missing",
        "no models/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
        "download.openmmlab.com",
        "detector = \"shapes\"",
    ];
    refuses(&args, &words);
}

#[test]
fn photographs_are_looked_at_one_by_one_and_every_switch_counts() {
    let folder = tempfile::tempdir().unwrap();
    let (prompts, dump) = (folder.path().join("p.jsonl"), folder.path().join("seen.json"));
    let model = folder.path().join("weights.safetensors");
    crate::parity::mask2former::write_with_classes(&model, 80);
    let record =
        json!({"prompt": "a red dog", "tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]});
    std::fs::write(&prompts, record.to_string()).unwrap();
    let [first, second] = ["shapes/clean_position.png", "shapes/noisy_colors.png"].map(fixture);
    let set = |key: &str, value: &str| format!("reward_models.geneval.{key}={value}");
    let clip = format!("{}/models/tiny-clip", env!("CARGO_MANIFEST_DIR"));
    let seen = |images: &[&std::path::Path], more: &[&str]| -> Vec<Value> {
        let mut args =
            vec!["score", "--reward", "geneval", "--prompts", text(&prompts), "--dump", text(&dump), "--images"];
        args.extend(images.iter().map(|path| text(path)));
        let keys: Vec<String> = [set("model", text(&model)), set("clip", &clip)]
            .into_iter()
            .chain(more.iter().map(|m| (*m).to_string()))
            .collect();
        args.push("--set");
        args.extend(keys.iter().map(String::as_str));
        assert_eq!(says(&args).lines().count(), images.len());
        let seen: Value = serde_json::from_slice(&std::fs::read(&dump).unwrap()).unwrap();
        images.iter().map(|path| seen[text(path)].clone()).collect()
    };
    let both = seen(&[&first, &second], &[]);
    assert_eq!(seen(&[&second], &[]), both[1..]);
    let objects = both[0].as_array().unwrap();
    assert!(objects.len() > 1 && objects.len() <= 100, "{objects:?}");
    let score = |object: &Value| object["score"].as_f64().unwrap();
    assert!(objects.windows(2).all(|pair| score(&pair[0]) >= score(&pair[1])));
    // Colours are told of what the rules look at.
    assert!(objects.iter().any(|o| score(o) > 0.3), "{objects:?}");
    assert!(objects.iter().all(|o| o["color"].is_string() == (score(o) > 0.3)), "{objects:?}");
    for switch in [set("channels", "bgr"), set("jpeg_quality", "75"), set("dtype", "bf16")] {
        assert_ne!(seen(&[&first], &[&switch]), both[..1], "{switch}");
    }
    seen(&[&first], &[&set("color_activation", "gelu")]);
}

#[test]
fn an_evaluation_says_what_its_rewards_need_as_a_config_does() {
    let root = env!("CARGO_MANIFEST_DIR");
    let (model, prompts) = (format!("{root}/models/tiny-sd3"), format!("{root}/configs/tiny/prompts_test.jsonl"));
    let args = [
        "eval",
        "--device",
        "cpu",
        "--model",
        &model,
        "--prompts",
        &prompts,
        "--rewards",
        "geneval",
        "--num-prompts",
        "1",
    ];
    let few = ["--images-per-prompt", "1", "--steps", "1", "--guidance", "1", "--max-sequence-length", "8"];
    let with = |set: &'static str| [&args[..], &few[..], &["--set", set]].concat();
    assert!(says(&with("reward_models.geneval.detector=shapes")).contains("RESULT geneval="));
    refuses(&with("reward_models.geneval.detector=shape"), &["rewards.geneval.detector: found \"shape\""]);
    refuses(
        &with("reward_models.pickscore.model=x"),
        &["--set reward_models.pickscore.model=x: expected", "NAME one of --rewards"],
    );
    refuses(&with("detector=shapes"), &["expected reward_models.NAME.KEY=VALUE"]);
}
