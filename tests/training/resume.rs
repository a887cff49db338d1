use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{assert_success, checkpoint_bytes, copy, train, train_command, write_config};

/// T22: a run that was stopped and resumed ends in the same bytes as one that was not.
#[test]
fn t22_resuming_gives_the_bytes_of_an_uninterrupted_run() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    assert_success(&train(&config, &whole, &[]));
    assert_success(&train(&config, &parts, &["--set", "num_epochs=1"]));
    assert_success(&train(&config, &parts, &["--set", "num_epochs=2"]));
    assert_success(&train(&config, &parts, &["--threads", "1"]));
    // The config in the checkpoint is that of the last command: the same.
    assert_eq!(checkpoint_bytes(&whole, 3), checkpoint_bytes(&parts, 3));
    let lora = |run: &std::path::Path| std::fs::read(run.join("lora/pytorch_lora_weights.safetensors")).unwrap();
    assert_eq!(lora(&whole), lora(&parts));
    let metrics = std::fs::read_to_string(parts.join("metrics.jsonl")).unwrap();
    let epochs = metrics.lines().filter(|l| l.contains("\"loss\"")).count();
    assert_eq!(epochs, 3, "each epoch is logged once");
}

/// The position in the schedule follows from the updates that the checkpoint counts, its end from `num_epochs`.
#[test]
fn t22_a_learning_rate_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let keys = ["--set", "optimizer.schedule=cosine", "optimizer.warmup=1", "optimizer.lr=0.01", "checkpoint.keep=4"];
    let rates = |run: &std::path::Path| -> Vec<f64> {
        let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let lines = log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        lines.filter(|line| line.get("loss").is_some()).map(|line| line["lr"].as_f64().unwrap()).collect()
    };
    let close = |got: &[f64], want: &[f64]| {
        assert!(
            got.len() == want.len() && got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-15),
            "{got:?} {want:?}"
        );
    };
    assert_success(&train(&config, &whole, &keys));
    close(&rates(&whole), &[0.0, 0.01, 0.005]);
    copy(&whole, &parts);
    let first = parts.join("checkpoints/epoch-000001");
    let back = [&keys[..], &["--resume", first.to_str().unwrap()]].concat();
    assert_success(&train(&config, &parts, &back));
    assert_eq!(checkpoint_bytes(&whole, 3), checkpoint_bytes(&parts, 3));
    assert_eq!(rates(&whole), rates(&parts));
    assert_success(&train(&config, &parts, &[&keys[..], &["num_epochs=4"], &back[keys.len()..]].concat()));
    close(&rates(&parts), &[0.0, 0.01, 0.0075, 0.0025]);
}

#[test]
fn results_do_not_depend_on_threads_rollout_batch_or_checkpointing() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let tensors = |name: &str, args: &[&str]| {
        let run = dir.path().join(name);
        assert_success(&train(&config, &run, args));
        checkpoint_bytes(&run, 3).into_iter().find(|(name, _)| name == "state.safetensors").unwrap().1
    };
    let base = tensors("a", &["--threads", "1"]);
    assert_eq!(base, tensors("b", &["--threads", "3"]));
    assert_eq!(base, tensors("c", &["--set", "rollout.batch_size=1"]));
    assert_eq!(base, tensors("d", &["--set", "train.activation_checkpointing=block"]));
    assert_eq!(base, tensors("e", &["--set", "train.activation_checkpointing=selective"]));
}

#[test]
fn a_signal_saves_and_exits_cleanly_and_the_same_command_goes_on() {
    [("-TERM", 143), ("-INT", 130), ("-HUP", 129), ("-USR1", 138)]
        .into_iter()
        .for_each(|(s, code)| signal_saves(s, code, &[]));
}

/// A run with `args` ends at `signal` with `code` and goes on from what it saved.
pub fn signal_saves(signal: &str, code: i32, args: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let run = dir.path().join("run");
    let with = |more: &[&'static str]| [args, more].concat();
    let mut child = train_command(&config, &run, &with(&["--set", "num_epochs=100000", "checkpoint.every=0"]))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|l| l.starts_with("epoch ") && l.contains(" 2/")), "two epochs are done");
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    let rest: Vec<String> = lines.collect();
    let deadline = Instant::now() + Duration::from_secs(30);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(Instant::now() < deadline, "does not stop"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(code), "{rest:?}");
    assert!(rest.iter().any(|l| l.starts_with("interrupted after epoch")), "{rest:?}");
    let again = train(&config, &run, &with(&["--set", "num_epochs=1"]));
    assert!(String::from_utf8_lossy(&again.stdout).contains("resumed from"));
}

/// A reader that has seen enough (`| head`) ends nothing.
#[test]
fn a_run_whose_output_nobody_reads_still_finishes() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let run = dir.path().join("run");
    let mut child = train_command(&config, &run, &[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(run.join("lora/pytorch_lora_weights.safetensors").exists());
}

/// A file size limit stands for a full disk: the checkpoint does not fit, the one before it does not suffer.
#[test]
#[cfg(unix)]
fn a_full_disk_is_one_line_and_costs_nothing_that_was_saved() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let run = dir.path().join("run");
    assert_success(&train(&config, &run, &["--set", "num_epochs=1"]));
    let before = checkpoint_bytes(&run, 1);
    let size = before.iter().map(|(_, bytes)| bytes.len()).max().unwrap();
    let limited = |output: &std::path::Path| {
        // Blocks of 512 or 1024 bytes, depending on the shell: half the largest file at most.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", size / 2048);
        let train = train_command(&config, output, &[]);
        Command::new("sh").args(["-c", &script, "sh"]).arg(train.get_program()).args(train.get_args()).output().unwrap()
    };
    for output in [&run, &dir.path().join("fresh")] {
        let out = limited(output);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{error}");
        assert!(error.contains("cannot write") && error.contains("state.safetensors"), "{error}");
        // That there is no room for the report either is a warning.
        let is_warning = |l: &&str| l.starts_with("warning: the report could not be written: ");
        assert_eq!(error.lines().filter(|l| !is_warning(l)).count(), 1, "{error}");
    }
    assert_eq!(before, checkpoint_bytes(&run, 1));
    // With room again, the same command goes on from there.
    let again = train(&config, &run, &[]);
    assert_success(&again);
    assert!(String::from_utf8_lossy(&again.stdout).contains("after epoch 1"));
}

#[test]
fn what_is_wrong_with_the_inputs_is_found_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let run = dir.path().join("run");
    let file = dir.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    let below = file.join("run");
    let cases: [(&std::path::Path, &[&str], &str); 6] = [
        (&run, &["--resume", "/no/such/checkpoint"], "/no/such/checkpoint"),
        (&run, &["--set", "rollout.batch_size=4"], "the nearest that do are 3 and 6"),
        (&run, &["--set", "rewards.pickscore=1"], "rewards.pickscore.model"),
        (&run, &["--set", "rewards.geneval.detector=shapes"], "include"),
        (
            &run,
            &["--set", "rewards.geneval=1"],
            "rewards.geneval.model: missing, and there is no models/mask2former_swin-s",
        ),
        (&below, &[], "output folder"),
    ];
    for (output, args, want) in cases {
        let out = train(&config, output, args);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(want) && error.lines().count() == 1, "{args:?}: {error}");
        assert!(!output.exists(), "{args:?}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"kept");
}

#[test]
fn two_runs_cannot_share_an_output_folder() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let run = dir.path().join("run");
    let mut first =
        train_command(&config, &run, &["--set", "num_epochs=100000"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|l| l.starts_with("epoch ")));
    let second = train(&config, &run, &[]);
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.status.code(), Some(2));
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(error.contains("in use") && error.lines().count() == 1, "{error}");
}

/// As NFS without lockd and Lustre without `-o flock` are.
#[test]
#[cfg(target_os = "linux")]
fn a_file_system_without_locks_is_warned_of_and_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let (source, library) = (dir.path().join("flock.c"), dir.path().join("flock.so"));
    let code = "#include <errno.h>\nint flock(int f, int how) { (void)f; (void)how; errno = ENOLCK; return -1; }\n";
    std::fs::write(&source, code).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(compiled.unwrap().success());
    let run = dir.path().join("run");
    let args = ["--set", "num_epochs=1"];
    let trained = train_command(&config, &run, &args).env("LD_PRELOAD", &library).output().unwrap();
    assert_success(&trained);
    let warning = String::from_utf8_lossy(&trained.stderr).into_owned();
    assert!(warning.starts_with("warning: cannot lock ") && warning.lines().count() == 1, "{warning}");
    assert!(warning.contains("a second run in this folder would not be noticed"), "{warning}");
    let elsewhere = dir.path().join("elsewhere");
    assert_success(&train(&config, &elsewhere, &args));
    assert_eq!(checkpoint_bytes(&run, 1), checkpoint_bytes(&elsewhere, 1));
}

#[test]
fn a_folder_keeps_as_many_checkpoints_as_it_should_also_after_going_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let run = dir.path().join("run");
    let kept = |args: &[&str]| {
        assert_success(&train(&config, &run, args));
        let entries = std::fs::read_dir(run.join("checkpoints")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names.pop().unwrap(), "latest");
        names
    };
    let name = |epoch: u32| format!("epoch-{epoch:06}");
    let latest = || std::fs::read_to_string(run.join("checkpoints/latest")).unwrap().trim().to_string();
    assert_eq!(kept(&["--set", "num_epochs=6", "checkpoint.keep=3"]), [4, 5, 6].map(name));
    let fourth = run.join("checkpoints/epoch-000004");
    let back = ["--resume", fourth.to_str().unwrap(), "--set", "num_epochs=5", "checkpoint.keep=3"];
    assert_eq!((kept(&back), latest()), ([4, 5, 6].map(name).to_vec(), name(5)));
    assert_eq!(
        (kept(&["--set", "num_epochs=8", "checkpoint.keep=3"]), latest()),
        ([6, 7, 8].map(name).to_vec(), name(8))
    );
    // Fewer are asked for, and there is nothing left to train.
    assert_eq!((kept(&["--set", "num_epochs=8", "checkpoint.keep=2"]), latest()), ([7, 8].map(name).to_vec(), name(8)));
}

#[test]
fn mistakes_are_one_line_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let run = dir.path().join("run");
    assert_success(&train(&config, &run, &["--set", "num_epochs=1"]));
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("empty.txt"), "\n\n").unwrap();
    std::fs::write(path("bad.jsonl"), "{\"prompt\": \"a\"}\n{\"prompt\": \n").unwrap();
    let set = |key: &str, value: &std::path::Path| format!("{key}={}", value.display());
    let empty = set("prompts.train", &path("empty.txt"));
    let bad = set("prompts.train", &path("bad.jsonl"));
    let nowhere = set("model", &path("nowhere"));
    let cases: [(&[&str], &str); 9] = [
        (&["--set", "ram.reward_multipler=3"], "did you mean 'reward_multiplier'?"),
        (&["--set", "optimizer.lr=fast"], "invalid type"),
        (&["--set", "rollout.resolution=50"], "the nearest is 48"),
        (&["--set", "rollout.batch_size=4"], "the nearest that do are 3 and 6"),
        (&["--set", "rewards.genevall=1"], "did you mean 'geneval'"),
        (&["--set", &empty], "empty.txt"),
        (&["--set", &bad], "bad.jsonl:2"),
        (&["--set", &nowhere], "nowhere"),
        (&["--set", "lora.rank=4"], "lora.rank was 2, now it is 4"),
    ];
    let before = checkpoint_bytes(&run, 1);
    for (args, want) in cases {
        let out = train(&config, &run, args);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(want) && error.lines().count() == 1, "{args:?}: {error}");
        assert_eq!(before, checkpoint_bytes(&run, 1));
    }
    // One flipped bit in the saved state.
    assert_success(&train(&config, &run, &["--set", "num_epochs=2"]));
    let state = run.join("checkpoints/epoch-000002/state.safetensors");
    let mut bytes = std::fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&state, bytes).unwrap();
    let out = train(&config, &run, &[]);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{error}");
    assert!(error.contains("state.safetensors") && error.contains("damaged"), "{error}");
    // The message offers an older checkpoint that is whole, and that one works.
    assert!(error.contains("epoch-000001 would work"), "{error}");
    let older = run.join("checkpoints/epoch-000001");
    assert_success(&train(&config, &run, &["--resume", older.to_str().unwrap()]));
}
