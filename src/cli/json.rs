//! `--json`: one object on stdout for a program, and everything for people on stderr.

use std::io::Write;

use anyhow::{Context, Result};
use clap::ArgMatches;
use engine::telemetry;
use serde::Serialize;

/// How to answer.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct JsonArg {
    /// Answer with one JSON object on stdout, whose keys --help lists; lines for people go to stderr.
    #[arg(long)]
    json: bool,
}

impl JsonArg {
    /// Prints `value`, or `text` if that is what was asked for.
    pub fn answer(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string_pretty(value)? + "\n" } else { text() };
        std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
    }
}

/// Leaves stdout to the answer if the subcommand of `matches` is asked for one in JSON.
pub fn take_stdout(matches: &ArgMatches) {
    let asked = |matches: &ArgMatches| matches.try_get_one::<bool>("json").ok().flatten() == Some(&true);
    if matches.subcommand().is_some_and(|(_, matches)| asked(matches)) {
        telemetry::take_stdout();
    }
}

/// What begins the list of keys in a help text.
const HEADING: &str = "Keys of the JSON (null, empty or absent where there is nothing):";

/// The end of a help text: the keys of the object and what they mean. Keys of objects in it follow a dot, those of objects in
/// a list `[]`.
pub fn keys(of: &[(&str, &str)]) -> String {
    let width = of.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let lines = of.iter().map(|(key, what)| format!("\n  {key:width$}  {what}"));
    HEADING.to_string() + &lines.collect::<String>()
}
