//! `metrics.jsonl`: one JSON object per line and event, with the number of epochs done as `epoch`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::io::write_atomic;

/// The open log of a run.
pub struct Metrics {
    path: PathBuf,
    file: File,
    earlier: Vec<Value>,
    /// Lines that could not be written.
    unwritten: String,
}

impl Metrics {
    /// Opens `metrics.jsonl` in `folder` for a run that continues after `epoch` epochs. Lines of later epochs, which
    /// will be run again, are dropped, and so is a line that a crash cut short; a run from the beginning (0) keeps
    /// nothing. Lines of `unwritten`, what an earlier process [could not write](Metrics::unwritten), are made up for.
    /// Either the old file or the new one is there at any moment.
    ///
    /// # Errors
    /// Names the file if it cannot be read or written.
    pub fn open(folder: &Path, epoch: u64, unwritten: &str) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let old = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let (mut kept, mut earlier) = (String::new(), Vec::new());
        // Text is kept as it is, so that numbers stay as they were written.
        let missing = unwritten.split_inclusive('\n').filter(|line| !old.contains(line));
        for line in old.split_inclusive('\n').chain(missing).filter(|line| epoch > 0 && line.ends_with('\n')) {
            if let Ok(value) = serde_json::from_str::<Value>(line)
                && value["epoch"].as_u64().is_some_and(|e| e <= epoch)
            {
                kept += line;
                earlier.push(value);
            }
        }
        if kept != old {
            write_atomic(&path, kept.as_bytes())?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, file, earlier, unwritten: String::new() })
    }

    /// The lines that were there and stay.
    pub fn earlier(&self) -> &[Value] {
        &self.earlier
    }

    /// The lines that could not be written, for whoever can still save them elsewhere.
    pub fn unwritten(&self) -> &str {
        &self.unwritten
    }

    /// Appends `line`, an object with `epoch`, after those that could not be written before. Numbers that are not finite
    /// become null.
    ///
    /// # Errors
    /// Names the file if it cannot be written; the line is then among the [unwritten](Metrics::unwritten) ones.
    pub fn write(&mut self, line: &Value) -> Result<()> {
        debug_assert!(line["epoch"].is_u64(), "{line}: Metrics::open will look for the epoch");
        self.unwritten += &epoch_first(line);
        let length = self.file.metadata().map(|m| m.len());
        // One write per line: a reader that follows the file sees whole lines.
        let written = self.file.write_all(self.unwritten.as_bytes());
        match (&written, length) {
            (Ok(()), _) => self.unwritten.clear(),
            // Half a line would spoil the next.
            (Err(_), Ok(length)) => _ = self.file.set_len(length),
            (Err(_), Err(_)) => {}
        }
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// `line` with its epoch and its evaluation before the rest, for who reads the file by eye or by grep.
fn epoch_first(line: &Value) -> String {
    let entries = line.as_object().into_iter().flatten();
    let (first, rest): (Vec<_>, Vec<_>) = entries.partition(|(key, _)| ["epoch", "eval"].contains(&key.as_str()));
    let text: Vec<String> =
        first.into_iter().chain(rest).map(|(key, value)| format!("{}:{value}", Value::from(key.as_str()))).collect();
    format!("{{{}}}\n", text.join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(folder: &Path) -> String {
        std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap()
    }

    #[test]
    fn a_resumed_run_has_every_epoch_once() {
        let dir = tempfile::tempdir().unwrap();
        let write = |metrics: &mut Metrics, epochs: std::ops::RangeInclusive<u32>| {
            for epoch in epochs {
                metrics.write(&json!({ "epoch": epoch, "loss": 0.1 * f64::from(epoch) })).unwrap();
                if epoch % 2 == 0 {
                    metrics.write(&json!({ "epoch": epoch, "eval": { "reward": 0.5 } })).unwrap();
                }
            }
        };
        write(&mut Metrics::open(dir.path(), 0, "").unwrap(), 1..=6);
        let whole = text(dir.path());
        for epoch in [4, 5, 1, 6] {
            let mut metrics = Metrics::open(dir.path(), u64::from(epoch), "").unwrap();
            let lines = (epoch + epoch / 2) as usize;
            assert_eq!(metrics.earlier().len(), lines);
            assert_eq!(text(dir.path()), whole.split_inclusive('\n').take(lines).collect::<String>());
            write(&mut metrics, epoch + 1..=6);
            assert_eq!(text(dir.path()), whole);
        }
        assert!(Metrics::open(dir.path(), 0, "").unwrap().earlier().is_empty());
        assert_eq!(text(dir.path()), "");
    }

    #[test]
    fn lines_that_a_crash_cut_short_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let whole = "{\"epoch\":1,\"loss\":0.10}\n";
        for torn in ["{\"epoch\":2,\"lo", "{\"epoch\":2}", "{\"epoch\":2,\n", "\0\0\0", "\u{fffd}", "[]\n", "3\n"] {
            std::fs::write(dir.path().join("metrics.jsonl"), format!("{whole}{torn}")).unwrap();
            let metrics = Metrics::open(dir.path(), 2, "").unwrap();
            assert_eq!(metrics.earlier(), [json!({ "epoch": 1, "loss": 0.1 })], "{torn:?}");
            assert_eq!(text(dir.path()), whole);
        }
    }

    #[test]
    fn lines_that_could_not_be_written_are_made_up_for_once() {
        let dir = tempfile::tempdir().unwrap();
        let line = |epoch: u32| format!("{{\"epoch\":{epoch},\"loss\":1.0}}\n");
        std::fs::write(dir.path().join("metrics.jsonl"), line(1)).unwrap();
        let unwritten = line(2) + &line(3);
        for _ in 0..2 {
            assert_eq!(Metrics::open(dir.path(), 2, &unwritten).unwrap().earlier().len(), 2);
            assert_eq!(text(dir.path()), line(1) + &line(2));
        }
        // A file that is open for reading alone stands for a full disk.
        let mut metrics = Metrics::open(dir.path(), 2, "").unwrap();
        let writable = std::mem::replace(&mut metrics.file, File::open(dir.path().join("metrics.jsonl")).unwrap());
        assert!(metrics.write(&json!({ "epoch": 3, "loss": 1.0 })).is_err());
        assert_eq!(metrics.unwritten(), line(3));
        metrics.file = writable;
        metrics.write(&json!({ "epoch": 4, "loss": 1.0 })).unwrap();
        assert_eq!((metrics.unwritten(), text(dir.path())), ("", (1..=4).map(line).collect()));
    }

    #[test]
    fn a_log_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Metrics::open(&dir.path().join("missing"), 0, "").err().unwrap().to_string();
        assert!(error.starts_with("cannot write ") && error.ends_with("missing/metrics.jsonl"), "{error}");
    }
}
