//! Files that others made, and places that others can write to.

use std::path::Path;
use std::process::{Command, Stdio};

use engine::device::Device;
use engine::io::TensorFile;

use super::{engine, raw_file, refuses, says};
use crate::parity::fixture;

#[test]
fn names_that_a_terminal_would_obey_are_shown_without_effect() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let header = r#"{"__metadata__":{"k\u001b[31m":"v\u0007"},"n\u001b]0;x\u0007":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    std::fs::write(&path, raw_file(header, 1)).unwrap();
    let text = says(&["inspect", path.to_str().unwrap()]);
    assert!(text.contains("[31m") && !text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    // In messages too.
    std::fs::write(&path, raw_file(&header.replace("[0,1]", "[0,2]"), 2)).unwrap();
    let error = String::from_utf8(engine(&["inspect", path.to_str().unwrap()]).stderr).unwrap();
    assert!(!error.trim_end().chars().any(char::is_control), "{error:?}");
}

#[test]
fn a_shape_of_forty_thousand_axes_fits_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let shape = vec!["1"; 40_000].join(",");
    std::fs::write(&path, raw_file(&format!(r#"{{"a":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}}}"#), 1))
        .unwrap();
    assert!(says(&["inspect", path.to_str().unwrap()]).lines().all(|l| l.len() < 400));
}

#[test]
fn a_tensor_of_more_axes_than_any_op_takes_is_refused_where_numbers_are_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora.safetensors");
    for dtype in ["F32", "F64"] {
        let bytes = if dtype == "F32" { 4 } else { 8 };
        let header = format!(
            r#"{{"transformer.x.lora_A.weight":{{"dtype":"{dtype}","shape":[1,1,1,1,1,1,1],"data_offsets":[0,{bytes}]}}}}"#
        );
        std::fs::write(&path, raw_file(&header, bytes)).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let error = file.tensor("transformer.x.lora_A.weight", &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains("lora_A.weight' has 7 axes, expected at most 6"), "{error}");
        assert!(file.entry("transformer.x.lora_A.weight").unwrap().tensor(&Device::Cpu).is_none());
    }
}

#[test]
fn files_of_pytorch_are_listed_and_what_would_run_is_refused() {
    let path = |name: &str| fixture("torch").join(name).display().to_string();
    let text = says(&["inspect", &path("nested.pth")]);
    assert!(text.contains("19 tensors") && text.contains("[epoch] 3"), "{text}");
    let line = |name: &str| text.lines().find(|l| l.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{text}"));
    assert!(line("bf16").contains("BF16  [4, 3]") && line("transposed").contains("[8, 6]"), "{text}");
    refuses(&["inspect", &path("malicious.pth")], &["malicious.pth", "posix.system", "never run"]);
    refuses(&["inspect", &path("module.pth")], &["torch.nn.modules.linear.Linear", "state_dict()"]);
    assert!(!Path::new("/tmp/engine_was_here").exists());
}

/// A component of two tensors in two shards with an index, made of the files in `shards`.
fn component(folder: &Path, shards: [&str; 2]) {
    for (name, shard) in ["a", "b"].iter().zip(shards) {
        let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        let path = folder.join(shard);
        if path.parent().unwrap().exists() {
            // What cannot be a file is only listed.
            let _ = std::fs::write(path, raw_file(&header, 1));
        }
    }
    let index = format!(r#"{{"weight_map": {{"a": "{}", "b": "{}"}}}}"#, shards[0], shards[1]);
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

#[test]
fn an_index_reaches_no_file_outside_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    let absolute = dir.path().join("x.safetensors").display().to_string();
    for shard in ["../x.safetensors", &absolute, "sub/x.safetensors", ".."] {
        component(&folder, ["a.safetensors", shard]);
        refuses(
            &["inspect", folder.to_str().unwrap()],
            &["model.safetensors.index.json", "expected the name of a file"],
        );
    }
}

#[test]
fn an_index_with_all_its_shards_comes_before_a_single_file_and_says_where_a_tensor_is() {
    let dir = tempfile::tempdir().unwrap();
    component(dir.path(), ["one.safetensors", "two.safetensors"]);
    let single = |value: u8| {
        let mut bytes = raw_file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1);
        *bytes.last_mut().unwrap() = value;
        bytes
    };
    std::fs::write(dir.path().join("model.safetensors"), single(7)).unwrap();
    let value = || TensorFile::open_component(dir.path(), "model", None).unwrap().entry("a").unwrap().raw().to_vec();
    assert_eq!(value(), [0]);
    // The second shard holds another `a`, which nothing asked for.
    let both =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    let mut bytes = raw_file(both, 2);
    let at = bytes.len() - 2;
    bytes[at] = 9;
    std::fs::write(dir.path().join("two.safetensors"), bytes).unwrap();
    assert_eq!(value(), [0]);
    // Half a set of shards is what an interrupted download leaves.
    std::fs::remove_file(dir.path().join("one.safetensors")).unwrap();
    assert_eq!(value(), [7]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_mistake_has_its_exit_code_where_nothing_can_be_printed() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        command.args(args).stderr(full()).stdout(full()).status().unwrap().code()
    };
    assert_eq!(run(&["inspect", "/no/such/file"]), Some(2));
    assert_eq!(run(&["doctor"]), Some(2));
}

#[test]
fn an_evaluation_whose_lines_nobody_reads_still_writes_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let (prompts, out) = (dir.path().join("p.txt"), dir.path().join("out"));
    std::fs::write(&prompts, "a red circle\n").unwrap();
    let model = fixture("pipeline/no_t5");
    let mut child = Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(["eval", "--rewards", "jpeg_compressibility", "--steps", "1", "--guidance", "1", "--resolution", "32"])
        .arg("--model")
        .arg(model)
        .arg("--prompts")
        .arg(prompts)
        .arg("--out")
        .arg(&out)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    child.wait().unwrap();
    assert!(out.join("0.png").exists() && out.join("results.json").exists());
}

#[test]
fn more_threads_than_help_are_not_started_and_texts_may_begin_with_a_dash() {
    let dir = tempfile::tempdir().unwrap();
    let latents = |threads: &str, name: &str| {
        let path = dir.path().join(name);
        let model = fixture("pipeline/no_t5");
        let args =
            ["sample", "--model", model.to_str().unwrap(), "--prompt", "-1 girl", "--steps", "1", "--size", "32x32"];
        let files = ["--save-latents", path.to_str().unwrap(), "--out", dir.path().to_str().unwrap()];
        says(&[&args[..], &files, &["--max-sequence-length", "4", "--threads", threads]].concat());
        std::fs::read(path).unwrap()
    };
    assert!(latents("1", "a.safetensors") == latents("100000", "b.safetensors"));
    assert!(dir.path().join("0.png").exists() && !dir.path().join("1.png").exists());
}

#[test]
fn a_variant_is_taken_where_it_is_alone_and_several_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = raw_file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1);
    let open = || TensorFile::open_component(dir.path(), "model", None).map(|f| f.path().display().to_string());
    std::fs::write(dir.path().join("model.fp16.safetensors"), &file).unwrap();
    assert!(open().unwrap().ends_with("model.fp16.safetensors"));
    std::fs::write(dir.path().join("model.bf16-00001-of-00001.safetensors"), &file).unwrap();
    let index = r#"{"weight_map": {"a": "model.bf16-00001-of-00001.safetensors"}}"#;
    std::fs::write(dir.path().join("model.safetensors.index.bf16.json"), index).unwrap();
    let error = open().err().unwrap().to_string();
    assert!(error.contains("the weights model are there as bf16 and fp16"), "{error}");
    std::fs::remove_file(dir.path().join("model.fp16.safetensors")).unwrap();
    assert!(open().unwrap().ends_with("model.safetensors.index.bf16.json"));
    std::fs::write(dir.path().join("model.safetensors"), &file).unwrap();
    assert!(open().unwrap().ends_with("model.safetensors"));
}
