//! Flags, help, and where the output goes.

use std::process::{Command, Stdio};

use super::{engine, refuses, says, subcommands};

#[test]
fn misspelt_flags_and_subcommands_get_a_suggestion() {
    refuses(&["inspect", "--jso", "x"], &["--jso", "'--json'"]);
    refuses(&["inpsect", "x"], &["inpsect", "'inspect'"]);
    refuses(&["inspect"], &["required", "<PATH>"]);
    refuses(
        &["doctor", "--device", "cdua:1"],
        &["cdua:1", "--device", "auto, cpu, cuda, cuda:N, vm, vm:8.0 or plan:CHIP", "'cuda'"],
    );
    refuses(&["doctor", "--device", "gpu"], &["'gpu'", "--device", "auto, cpu, cuda, cuda:N, vm, vm:8.0 or plan:CHIP"]);
    refuses(&["doctor", "--device", "cuda:first"], &["'first'", "--device", "cuda:0"]);
    refuses(&["doctor", "--device", "vm:0"], &["vm:0", "--device", "did you mean 'vm'"]);
    refuses(&["doctor", "--device", "cpu:0"], &["cpu:0", "--device", "did you mean 'cpu'"]);
    refuses(&["doctor", "--threads", "many"], &["many", "--threads"]);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/tiny/ram_genevl.toml");
    refuses(&["train", "--config", config], &["ram_genevl.toml", "did you mean 'ram_geneval.toml'?", "No such file"]);
}

#[test]
fn every_subcommand_explains_itself() {
    let names = subcommands();
    assert!(names.iter().any(|n| n == "inspect") && names.iter().any(|n| n == "doctor"), "{names:?}");
    for name in names {
        let help = says(&[&name, "--help"]);
        assert!(help.contains(&format!("Usage: engine {name}")), "{help}");
    }
    assert_eq!(engine(&[] as &[&str]).status.code(), Some(2));
}

#[test]
fn a_report_of_what_is_no_run_says_what_may_have_been_meant() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("geneval");
    std::fs::create_dir(&run).unwrap();
    let log = run.join("metrics.jsonl");
    let path = |p: &std::path::Path| p.to_str().unwrap().to_string();
    refuses(&["report".into(), path(&run)], &["geneval", "no metrics.jsonl in it"]);
    std::fs::write(&log, "{\"epoch\":1,\"loss\":null}\n{\"epoch\":2,\"lo").unwrap();
    refuses(&["report".into(), path(folder.path())], &["no metrics.jsonl in it", "geneval is one"]);
    refuses(
        &["report".into(), path(&folder.path().join("genevall"))],
        &["no such run folder", "did you mean 'geneval'?"],
    );
    refuses(&["report".into(), path(&run), path(&run.join("."))], &["given twice"]);
    refuses(&["report".into(), path(&run), "--output".into(), path(folder.path())], &["it is a folder"]);
    refuses(&["report"], &["<RUN>"]);
    let page = run.join("report.html");
    assert_eq!(says(&["report".into(), path(&run)]), format!("wrote {}\n", page.display()));
    std::fs::write(&log, "not a log\n").unwrap();
    refuses(&["report".into(), path(&run)], &["metrics.jsonl", "no line of it is of an epoch or an evaluation"]);
    std::fs::write(run.join("config.toml"), "seed = ").unwrap();
    refuses(&["report".into(), path(&run)], &["config.toml"]);
}

#[test]
fn doctor_reports_the_machine_and_why_there_is_no_cuda() {
    let out = says(&["doctor", "--threads", "1"]);
    for word in ["processor", "memory", "disk", "GFLOP/s", "1 threads", "libcuda", "libnvrtc", "libcublasLt"] {
        assert!(out.contains(word), "'{word}' is not in: {out}");
    }
}

#[test]
fn a_reader_that_stops_early_is_no_mistake() {
    let path = crate::parity::fixture("mmdit/sd35/diffusion_pytorch_model.safetensors");
    let mut child = Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(["inspect".as_ref(), path.as_os_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
