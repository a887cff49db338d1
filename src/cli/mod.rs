//! The command line. A subcommand is one file with `pub struct Args` (its doc comment is the help text) and
//! `pub fn run(Args) -> Result<()>`; it parses, calls the library and prints.
//!
//! Exit codes: 0 done, 2 a mistake of the user (one line on stderr), 101 a mistake of this program.

mod cuda;
mod doctor;
mod encode;
mod eval;
mod export;
mod inspect;
mod sample;
mod score;
mod step;
mod train;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use engine::device::with_threads;
use engine::models::text::{LONGEST_SEQUENCE, PromptEmbeds, TextEncoders, describe_truncated};
use engine::telemetry::{Progress, warn};

/// Exit code for whatever a user can mend; the same as clap's.
const USER_MISTAKE: u8 = 2;

/// Runs SD3.5-format text-to-image models and post-trains them with reinforcement learning.
#[derive(Parser)]
#[command(name = "engine", version, arg_required_else_help = true, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

macro_rules! commands {
    ($($variant:ident => $module:ident,)*) => {
        #[derive(clap::Subcommand)]
        enum Command {
            $($variant($module::Args),)*
        }

        impl Command {
            fn run(self) -> Result<()> {
                match self {
                    $(Command::$variant(args) => $module::run(args),)*
                }
            }
        }
    };
}

// In the order of `engine --help`.
commands! {
    Sample => sample,
    Train => train,
    Eval => eval,
    Score => score,
    Export => export,
    Encode => encode,
    Step => step,
    Inspect => inspect,
    Doctor => doctor,
}

/// Where to compute.
#[derive(clap::Args, Clone, Debug)]
pub struct DeviceArg {
    /// Device to compute on: auto or cpu.
    #[arg(long, default_value = "auto", value_name = "DEVICE", value_parser = device)]
    device: Device,
    /// Worker threads; 0 is one per core. Results do not depend on it.
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
}

/// A device that exists.
#[derive(Clone, Copy, Debug)]
enum Device {
    Cpu,
}

fn device(name: &str) -> Result<Device, String> {
    match name {
        "auto" | "cpu" => Ok(Device::Cpu),
        _ => Err("this version computes on the cpu only; expected auto or cpu".into()),
    }
}

impl DeviceArg {
    /// Runs `f` where the arguments say.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match self.device {
            Device::Cpu => with_threads(self.threads, f).context("cannot start worker threads")?,
        }
    }
}

/// The value of `--max-sequence-length`.
fn sequence_length(text: &str) -> Result<usize, String> {
    let length = text.parse().ok().filter(|n| (1..=LONGEST_SEQUENCE).contains(n));
    length.ok_or_else(|| format!("expected 1 to {LONGEST_SEQUENCE} tokens"))
}

/// The embeddings of `prompts`, with progress and a warning about those that are longer than an encoder takes.
fn encode_prompts(text: &TextEncoders, prompts: &[String], max_sequence_length: usize) -> Result<PromptEmbeds> {
    let truncated = text.truncated(prompts.iter().map(String::as_str), max_sequence_length)?;
    describe_truncated(&truncated).iter().for_each(|line| warn(line));
    let progress = Progress::new("encoding", prompts.len() as u64);
    let embeds = text.encode_with(prompts, max_sequence_length, |n| progress.step(n as u64))?;
    progress.finish();
    Ok(embeds)
}

/// Parses the command line, runs the subcommand and reports.
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| on_panic(&panic.to_string())));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return on_usage(&e),
    };
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if is_closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => fail(&format!("{e:#}")),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("error: {}", one_line(message));
    ExitCode::from(USER_MISTAKE)
}

/// The words of `text` without line breaks.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Whether all that happened is that a reader such as `head` has seen enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<std::io::Error>()).any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Help and version as clap prints them; a mistake as one line, with clap's suggestion.
fn on_usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || error.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(error.exit_code() as u8);
    }
    let text = error.to_string();
    let text = text.trim_start_matches("error: ");
    let text = text.split("\nUsage:").next().unwrap_or(text).split("\nFor more information").next().unwrap_or(text);
    fail(&text.replace("\n\n  tip: ", "; "))
}

/// One line for a mistake of this program. `println!` panics where it cannot write: that is no mistake of ours.
fn on_panic(panic: &str) {
    if let Some((_, why)) = panic.split_once("failed printing to stdout: ") {
        let broken = why.contains("Broken pipe");
        if !broken {
            fail(&format!("cannot write to standard output: {why}"));
        }
        std::process::exit(if broken { 0 } else { USER_MISTAKE.into() });
    }
    eprintln!("internal error: {}, please report", one_line(panic));
    std::process::exit(101);
}
