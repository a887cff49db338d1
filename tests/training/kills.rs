//! Runs that are killed with `kill -9`, at moments that are drawn so that every phase is hit, and go on until they finish.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use engine::device::philox::{Key, Purpose, Stream};
use serde_json::Value;

use super::events::{Event, board};
use super::{assert_success, checkpoint_bytes, train_command, write_config};

/// How many kills; the default is for every run of the tests.
const COUNT: &str = "ENGINE_KILLS";
const EPOCHS: u32 = 6;
const RUN: [&str; 4] = ["--set", "num_epochs=6", "eval.every=2", "lora.rank=8"];

/// When to kill.
#[derive(Clone, Debug)]
enum Moment {
    /// After this time.
    After(Duration),
    /// This long after a file with this path's beginning is there that was not before, below the output folder.
    Sees(&'static str, Duration),
    /// This long after another line that begins so was printed.
    Prints(&'static str, Duration),
}

/// What a run writes, by the beginnings of the names while it does.
const WRITTEN: [&str; 8] = [
    ".best",
    "checkpoints/.epoch-",
    "checkpoints/epoch-",
    "checkpoints/.latest",
    "lora/.",
    "samples/.",
    ".metrics",
    ".config",
];
const PRINTED: [&str; 4] = ["epoch ", "eval ", "resumed ", "RESULT "];

impl Moment {
    /// One of a run that takes `whole`.
    fn draw(random: &mut Stream, whole: Duration) -> Self {
        let mut part = |of: Duration| of.mul_f32(random.uniform());
        // Files are written within milliseconds, often within less than one.
        let any = part(whole);
        let at_most = part(Duration::from_millis(4));
        let soon = part(at_most);
        match random.below(3) {
            0 => Self::After(any),
            1 => Self::Prints(PRINTED[random.below(PRINTED.len() as u32) as usize], soon),
            _ => Self::Sees(WRITTEN[random.below(WRITTEN.len() as u32) as usize], soon),
        }
    }
}

/// The files and folders in `folder` and one below, and what tells each from a later one of its name.
fn listing(folder: &Path) -> BTreeSet<(String, u64)> {
    let read = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut out = BTreeSet::new();
    for entry in read(folder) {
        let name = entry.file_name().into_string().unwrap();
        let inode = |entry: &std::fs::DirEntry| entry.metadata().map_or(0, |m| m.ino());
        for below in read(&entry.path()) {
            out.insert((format!("{name}/{}", below.file_name().to_str().unwrap()), inode(&below)));
        }
        out.insert((name, inode(&entry)));
    }
    out
}

/// Starts the run and kills it at `moment`. Gives the phase it was in, or nothing if it finished before.
fn kill(config: &Path, output: &Path, log: &Path, moment: &Moment) -> Option<String> {
    let before = listing(output);
    let started = Instant::now();
    let mut command = train_command(config, output, &RUN);
    let error = log.with_extension("error");
    let mut child = command.stdout(File::create(log).unwrap()).stderr(File::create(&error).unwrap()).spawn().unwrap();
    let lines = || std::fs::read_to_string(log).unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        let (due, rest) = match moment {
            Moment::After(time) => (started.elapsed() >= *time, Duration::ZERO),
            Moment::Sees(start, rest) => {
                (listing(output).difference(&before).any(|(name, _)| name.starts_with(start)), *rest)
            }
            Moment::Prints(start, rest) => (lines().lines().any(|l| l.starts_with(start)), *rest),
        };
        if due {
            spin(rest);
            child.kill().unwrap();
            break child.wait().unwrap();
        }
        spin(Duration::from_micros(50));
    };
    if status.code().is_some() {
        assert!(status.success(), "{}", std::fs::read_to_string(&error).unwrap());
        return None;
    }
    Some(phase(output, &before, &lines()))
}

/// Waits for less time than the system's sleep can.
fn spin(time: Duration) {
    let started = Instant::now();
    while started.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// What the run was at when it was killed, by what it left and what it printed.
fn phase(output: &Path, before: &BTreeSet<(String, u64)>, log: &str) -> String {
    let left = listing(output);
    let new = |start: &str, end: &str| left.difference(before).any(|(n, _)| n.starts_with(start) && n.ends_with(end));
    let newest = left.iter().filter_map(|(name, _)| name.strip_prefix("checkpoints/epoch-")).max();
    let latest = std::fs::read_to_string(output.join("checkpoints/latest")).unwrap_or_default();
    let named = latest.trim().strip_prefix("epoch-");
    let is_cut = board(&output.join("tensorboard")).1;
    let files = [
        (new("checkpoints/.latest", ".tmp"), "moving the pointer to a checkpoint"),
        (newest > named, "between a checkpoint and its pointer"),
        (new("checkpoints/.epoch", ".replaced"), "replacing a checkpoint"),
        (new("checkpoints/.epoch", ".tmp"), "filling or removing a checkpoint"),
        (new(".best", ".tmp"), "filling best/"),
        (new(".best", ".replaced"), "replacing best/"),
        (new("lora/.", ".tmp"), "writing the LoRA"),
        (new("samples/.", ".tmp"), "writing a sample grid"),
        (new(".metrics", ".tmp"), "cutting metrics.jsonl"),
        (new(".config", ".tmp"), "writing config.toml"),
        (is_cut, "writing an event file"),
    ];
    if let Some((_, phase)) = files.iter().find(|(is_it, _)| *is_it) {
        return phase.to_string();
    }
    let last =
        log.lines().rfind(|l| ["epoch ", "eval ", "resumed ", "RESULT ", "done "].iter().any(|s| l.starts_with(s)));
    match last.and_then(|l| l.split(' ').next()) {
        None => "start-up".into(),
        Some("epoch") => "after an epoch".into(),
        Some("eval") => "after an evaluation".into(),
        Some("resumed") => "after resuming".into(),
        Some(_) => "at the end".into(),
    }
}

/// What does not depend on when a run was killed, as lines.
fn log(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let speeds = ["images_per_second", "model_flops_per_second", "peak_flops_per_second", "mfu"];
    for key in
        ["seconds", "reward_ms_per_image", "total_seconds", "elapsed_seconds", "arena_peak_bytes", "peak_memory_bytes"]
            .into_iter()
            .chain(speeds)
    {
        lines.iter_mut().for_each(|l| _ = l.as_object_mut().unwrap().remove(key));
    }
    lines
}

/// The board without times and memory, in the order of steps.
fn values(output: &Path) -> Vec<Event> {
    let (mut events, _) = board(&output.join("tensorboard"));
    events.retain(|e| ["time/", "memory/"].iter().all(|of| !e.tag.starts_with(of)));
    events.sort_by(|a, b| (a.step, &a.tag).cmp(&(b.step, &b.tag)));
    events
}

/// The names in a folder of the output.
fn names(output: &Path, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(output.join(folder)).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn assert_same(whole: &Path, killed: &Path) {
    for folder in ["", "best", "checkpoints", "lora", "samples"] {
        assert_eq!(names(whole, folder), names(killed, folder), "{folder}");
    }
    for epoch in [EPOCHS - 1, EPOCHS] {
        assert!(checkpoint_bytes(whole, epoch) == checkpoint_bytes(killed, epoch), "checkpoint of epoch {epoch}");
    }
    let bytes = |run: &Path, file: &str| std::fs::read(run.join(file)).unwrap();
    let best = ["best/pytorch_lora_weights.safetensors", "best/best.json"];
    for file in
        ["lora/pytorch_lora_weights.safetensors", "samples/epoch-000006.png", "config.toml"].into_iter().chain(best)
    {
        assert!(bytes(whole, file) == bytes(killed, file), "{file}");
    }
    assert_eq!(log(whole), log(killed));
    let (whole, killed) = (values(whole), values(killed));
    let of = |events: &[Event]| events.iter().map(|e| (e.step, e.tag.clone())).collect::<Vec<_>>();
    assert_eq!(of(&whole), of(&killed));
    assert!(whole == killed, "the board has other values");
}

#[test]
fn kills_at_any_moment_leave_the_files_of_an_uninterrupted_run() {
    let count: usize = std::env::var(COUNT).map_or(10, |n| n.parse().expect("a number of kills"));
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let whole = dir.path().join("whole");
    let started = Instant::now();
    assert_success(&train_command(&config, &whole, &RUN).stdin(Stdio::null()).output().unwrap());
    let time = started.elapsed();
    let mut random = Key::new(9, Purpose::SamplerNoise).stream();
    let (mut phases, mut kills, mut run) = (BTreeMap::<String, usize>::new(), 0, 0);
    while kills < count {
        run += 1;
        let output: PathBuf = dir.path().join(format!("run-{run}"));
        loop {
            // The last run is left to finish.
            let moment = if kills < count { Moment::draw(&mut random, time) } else { Moment::After(Duration::MAX) };
            let Some(phase) = kill(&config, &output, &dir.path().join("log"), &moment) else { break };
            kills += 1;
            *phases.entry(phase).or_default() += 1;
        }
        assert_same(&whole, &output);
    }
    println!("{kills} kills of {run} runs: {phases:#?}");
}
