//! The command line. A subcommand is one file with `pub struct Args` (its doc comment is the help text) and
//! `pub fn run(Args) -> Result<()>`; it parses, calls the library and prints.
//!
//! Exit codes: 0 done, 2 a mistake of the user (one line on stderr), 75 a server that judges pictures stays away (one line too: the
//! same command may work later), 101 a mistake of this program, 128 and the number of the signal that ended it.

mod bench;
mod compare;
mod complete;
mod configs;
mod cuda;
mod doctor;
mod encode;
mod eval;
mod export;
mod fetch;
mod inspect;
mod json;
mod man;
mod report;
mod sample;
mod score;
mod step;
mod train;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, FromArgMatches, Parser};
use engine::device::gpu::{CHIPS, Chip, HOPPER, PORTABLE};
use engine::device::{Device, check_mapped, with_threads};
use engine::io::did_you_mean;
use engine::models::index;
use engine::models::source::{Model, Parts, Source};
use engine::models::text::{LONGEST_SEQUENCE, PromptEmbeds, TextEncoders, describe_truncated};
use engine::rewards::Unavailable;
use engine::telemetry::{Progress, say, warn};
use engine::train::guard::Interrupted;

/// Exit code for whatever a user can mend; the same as clap's.
const USER_MISTAKE: u8 = 2;

/// Exit code for what may pass: EX_TEMPFAIL of sysexits.h.
const TRY_LATER: u8 = 75;

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
    Compare => compare,
    Eval => eval,
    Report => report,
    Score => score,
    Export => export,
    Encode => encode,
    Step => step,
    Inspect => inspect,
    Doctor => doctor,
    Bench => bench,
    Fetch => fetch,
    Configs => configs,
    Completions => complete,
    Man => man,
}

/// Where to compute.
#[derive(clap::Args, Clone, Debug)]
pub struct DeviceArg {
    /// Device to compute on: auto (a GPU if there is one, else the cpu), cpu, cuda, cuda:N, or vm, which interprets the
    /// kernels for an H100 on the cpu: for tests, far slower than the cpu itself (vm:8.0 interprets those for an A100). With
    /// train --dry-run also plan:h100, plan:h200, plan:a100 or plan:a100-40gb: memory and time that a run would take there.
    #[arg(long, default_value = "auto", value_name = "DEVICE", value_parser = device_name)]
    device: DeviceName,
    /// Worker threads; 0 is one per core. Results do not depend on it.
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
}

/// The value of `--device`.
#[derive(Clone, Copy, Debug)]
enum DeviceName {
    Auto,
    Cpu,
    Cuda(u32),
    /// Interpreted, of this compute capability.
    Vm((u32, u32)),
    /// Not there: only planned for.
    Plan(&'static Chip),
}

fn device_name(name: &str) -> Result<DeviceName, String> {
    const KNOWN: [&str; 5] = ["auto", "cpu", "cuda", "vm", "plan"];
    let expected = "expected auto, cpu, cuda, cuda:N, vm, vm:8.0 or plan:CHIP";
    match name.split_once(':') {
        None if name == "auto" => Ok(DeviceName::Auto),
        None if name == "cpu" => Ok(DeviceName::Cpu),
        None if name == "cuda" => Ok(DeviceName::Cuda(0)),
        None if name == "vm" => Ok(DeviceName::Vm(HOPPER)),
        Some(("vm", "9.0")) => Ok(DeviceName::Vm(HOPPER)),
        Some(("vm", "8.0")) => Ok(DeviceName::Vm(PORTABLE)),
        Some(("plan", chip)) => Chip::named(chip).map(DeviceName::Plan).ok_or_else(|| {
            let known = CHIPS.iter().map(|chip| chip.name);
            let names: Vec<&str> = known.clone().collect();
            format!("no chip '{chip}' to plan for, expected one of {}{}", names.join(", "), did_you_mean(chip, known))
        }),
        Some(("cuda", ordinal)) => {
            let ordinal =
                ordinal.parse().map_err(|_| format!("'{ordinal}' is no number of a device; such as cuda:0"))?;
            Ok(DeviceName::Cuda(ordinal))
        }
        _ => Err(format!("{expected}{}", did_you_mean(name.split(':').next().unwrap_or(name), KNOWN))),
    }
}

impl DeviceArg {
    /// Runs `f` where the arguments say.
    pub fn run<T: Send>(&self, f: impl FnOnce(&Device) -> Result<T> + Send) -> Result<T> {
        let device = self.open()?;
        // What has failed on the device comes first: all that was computed after it is worth nothing.
        self.on_cpu(|| {
            let result = f(&device);
            device.check().and(result)
        })
    }

    /// The device that the arguments name.
    fn open(&self) -> Result<Device> {
        match self.device {
            DeviceName::Auto => {
                let (device, unusable) = Device::auto();
                unusable.iter().for_each(|why| warn(&format!("computing on the cpu: {why}")));
                Ok(device)
            }
            DeviceName::Cpu => Ok(Device::Cpu),
            DeviceName::Cuda(ordinal) => Device::cuda(ordinal).with_context(|| format!("--device cuda:{ordinal}")),
            DeviceName::Plan(chip) => {
                bail!("--device plan:{}: nothing is computed there; it is for engine train --dry-run", chip.name)
            }
            DeviceName::Vm(capability) => Device::vm_of(capability, ptxvm::Options::default()),
        }
    }

    /// The chip that is only planned for, if one is.
    pub fn planned(&self) -> Option<&'static Chip> {
        if let DeviceName::Plan(chip) = self.device { Some(chip) } else { None }
    }

    /// Runs `f`, which computes on the CPU whatever the device.
    pub fn on_cpu<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let result = with_threads(self.threads, f).context("cannot start worker threads")?;
        // Whatever came of a file that changed meanwhile is not worth reporting.
        check_mapped().and(result)
    }
}

/// What a model is made of, besides its folder or file.
#[derive(clap::Args, Clone, Debug)]
pub struct PartArgs {
    /// Variant of the weights to take where the model's folder has it, such as fp16.
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// File with the transformer: safetensors or GGUF.
    #[arg(long, value_name = "FILE")]
    transformer: Option<PathBuf>,
    /// File with the VAE.
    #[arg(long, value_name = "FILE")]
    vae: Option<PathBuf>,
    /// File with the first text encoder.
    #[arg(long, value_name = "FILE")]
    clip_l: Option<PathBuf>,
    /// File with the second text encoder.
    #[arg(long, value_name = "FILE")]
    clip_g: Option<PathBuf>,
    /// File with T5: safetensors or GGUF.
    #[arg(long, value_name = "FILE")]
    t5xxl: Option<PathBuf>,
    /// Folder with the folders tokenizer, tokenizer_2 and tokenizer_3, such as that of any SD3 model.
    #[arg(long, value_name = "DIR")]
    tokenizers: Option<PathBuf>,
}

impl PartArgs {
    /// The model at `model` with these parts.
    fn source(&self, model: &Path) -> Source {
        self.over(Source { model: model.to_path_buf(), ..Source::default() })
    }

    /// `source` with these parts in the place of its own.
    fn over(&self, source: Source) -> Source {
        let Self { variant, transformer, vae, clip_l, clip_g, t5xxl, tokenizers } = self.clone();
        let Source { model, variant: own_variant, parts: own } = source;
        let parts = Parts {
            transformer: transformer.or(own.transformer),
            vae: vae.or(own.vae),
            clip_l: clip_l.or(own.clip_l),
            clip_g: clip_g.or(own.clip_g),
            t5xxl: t5xxl.or(own.t5xxl),
            tokenizers: tokenizers.or(own.tokenizers),
        };
        Source { model, variant: variant.or(own_variant), parts }
    }

    /// Finds the parts of the model at `model`, and says where they are if that is not all in one folder.
    fn open(&self, model: &Path) -> Result<Model> {
        let model = Model::open(&self.source(model))?;
        model.describe().iter().for_each(|line| say(line));
        Ok(model)
    }
}

/// A model's folder: itself, or the snapshot of its root in the hub's cache.
fn model_folder(text: &str) -> Result<PathBuf, String> {
    Ok(index::folder(Path::new(text)))
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
    complete::answer_shell(Cli::command);
    let command = Cli::command();
    let parsed = command.clone().try_get_matches_from(with_dashes(std::env::args_os(), &command));
    let cli = match parsed.and_then(|matches| {
        json::take_stdout(&matches);
        Cli::from_arg_matches(&matches)
    }) {
        Ok(cli) => cli,
        Err(e) => return on_usage(&e),
    };
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if is_closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => match e.downcast_ref::<Interrupted>() {
            Some(Interrupted(code)) => ExitCode::from(*code),
            None => fail(&format!("{e:#}"), if e.is::<Unavailable>() { TRY_LATER } else { USER_MISTAKE }),
        },
    }
}

/// Flags whose values are free text, which may begin with a dash, and whether they take several.
const FREE_TEXT: [(&str, bool); 2] = [("--prompt", true), ("--negative-prompt", false)];

/// The arguments with `--prompt=-1 girl` for `--prompt "-1 girl"`, which clap would take for a flag. What follows the flag is
/// text unless it is one of this program's; of what comes later, what begins with a dash is text if it has a space.
fn with_dashes(args: impl Iterator<Item = OsString>, cli: &clap::Command) -> Vec<OsString> {
    let flags = cli.get_subcommands().flat_map(clap::Command::get_arguments).filter_map(clap::Arg::get_long);
    let flags: Vec<String> = flags.chain(["help"]).map(|name| format!("--{name}")).collect();
    let is_flag = |text: &str| flags.iter().any(|f| text.split('=').next() == Some(f));
    let mut out: Vec<OsString> = Vec::new();
    // The free-text flag whose values come, whether it takes several, whether it has one.
    let mut of: Option<(&str, bool, bool)> = None;
    for arg in args {
        let text = arg.to_string_lossy().into_owned();
        if let Some((flag, several, has_one)) = of {
            let is_text = match text.starts_with('-') {
                true => !is_flag(&text) && (!has_one || several && text.contains(' ')),
                false => !has_one || several,
            };
            if is_text {
                let mut whole = OsString::from(format!("{flag}="));
                whole.push(&arg);
                out.push(whole);
                of = Some((flag, several, true));
                continue;
            }
            out.extend((!has_one).then(|| flag.into()));
            of = None;
        }
        match FREE_TEXT.iter().find(|(flag, _)| text == *flag) {
            Some((flag, several)) => of = Some((flag, *several, false)),
            None => out.push(arg),
        }
    }
    out.extend(of.filter(|(.., has_one)| !has_one).map(|(flag, ..)| flag.into()));
    out
}

fn fail(message: &str, code: u8) -> ExitCode {
    complain(&format!("error: {}", one_line(message)));
    ExitCode::from(code)
}

/// A line on stderr, if it can be written: a full disk there changes no exit code.
fn complain(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The words of `text` without line breaks, and without what a terminal would obey: names may come from a download.
fn one_line(text: &str) -> String {
    let line = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
    printable(&line)
}

/// `text` with a replacement character for every control character.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
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
    fail(&text.replace("\n\n  tip: ", "; "), USER_MISTAKE)
}

/// One line for a mistake of this program. `println!` panics where it cannot write: that is no mistake of ours.
fn on_panic(panic: &str) {
    if let Some((_, why)) = panic.split_once("failed printing to stdout: ") {
        let broken = why.contains("Broken pipe");
        if !broken {
            fail(&format!("cannot write to standard output: {why}"), USER_MISTAKE);
        }
        std::process::exit(if broken { 0 } else { USER_MISTAKE.into() });
    }
    complain(&format!("internal error: {}, please report", one_line(panic)));
    std::process::exit(101);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(args: &str) -> String {
        let args = args.split('|').map(OsString::from);
        with_dashes(args, &Cli::command()).join("|".as_ref()).into_string().unwrap()
    }

    #[test]
    fn texts_may_begin_with_a_dash_and_flags_that_follow_are_flags() {
        for (given, want) in [
            ("engine|sample|--prompt|-1 girl|--steps|3", "engine|sample|--prompt=-1 girl|--steps|3"),
            ("--prompt|-blurry|-- a|b|--out|o", "--prompt=-blurry|--prompt=-- a|--prompt=b|--out|o"),
            ("--negative-prompt|-x|y|--prompt|--|--seed=1", "--negative-prompt=-x|y|--prompt=--|--seed=1"),
            // Mistakes stay mistakes.
            ("--prompt|--steps|3", "--prompt|--steps|3"),
            ("--prompt|a|--stpes|3", "--prompt=a|--stpes|3"),
            ("--prompt", "--prompt"),
            ("--prompt=-1 girl|-x", "--prompt=-1 girl|-x"),
        ] {
            assert_eq!(rewritten(given), want);
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_printed() {
        assert_eq!(one_line("a\n  b\u{1b}[31m\u{7}c\r\n"), "a b\u{fffd}[31m\u{fffd}c");
    }
}
