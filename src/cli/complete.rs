use std::ffi::OsStr;
use std::io::Write;

use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, ValueHint};
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use clap_complete::env::{CompleteEnv, Shells};
use engine::config::published::Published;
use engine::device::gpu::CHIPS;
use engine::rewards;
use engine::rollout::sampler::Kind;

/// Print the script with which a shell completes engine's command line: flags, files, configs, devices, rewards.
#[derive(clap::Args)]
#[command(after_long_help = INSTALLATION)]
pub struct Args {
    /// Shell.
    #[arg(value_name = "SHELL", value_parser = PossibleValuesParser::new(Shells::builtins().names()))]
    shell: String,
}

const INSTALLATION: &str = "\
A line in the shell's start-up file keeps it; the same line typed tries it:
  bash        ~/.bashrc                   source <(engine completions bash)
  zsh         ~/.zshrc, after compinit    source <(engine completions zsh)
  fish        ~/.config/fish/config.fish  engine completions fish | source
  elvish      ~/.config/elvish/rc.elv     eval (engine completions elvish | slurp)
  powershell  $PROFILE                    engine completions powershell | Out-String | iex";

/// What the shell sets when it asks for completions.
const ASKS: &str = "ENGINE_COMPLETE";
/// What the shell runs, and completes.
const PROGRAM: &str = "engine";

/// readline splits words at : and =, as in plan:h100 and --device=cpu; to the program they are one. Where that matters, the words
/// are taken from the line, and of what is found only what follows the last such sign is given back.
const WHOLE_WORDS: &str = r#"
_engine_whole_words() {
    local line=${COMP_LINE:0:COMP_POINT}
    if [[ ${COMP_WORDS[COMP_CWORD]} != [:=]* && ${COMP_WORDS[COMP_CWORD-1]} != [:=] || $line == *[[:space:]] ]]; then
        _clap_complete_engine "$@"
        return
    fi
    local -a COMP_WORDS
    read -r -a COMP_WORDS <<< "$line"
    local COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
    local word=${COMP_WORDS[COMP_CWORD]}
    _clap_complete_engine engine "$word" "${COMP_WORDS[COMP_CWORD-1]}"
    COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*[:=]}"}"}")
}
complete -o nospace -o bashdefault -o nosort -F _engine_whole_words engine 2> /dev/null ||
    complete -o nospace -o bashdefault -F _engine_whole_words engine
"#;

pub fn run(args: Args) -> Result<()> {
    let shell = Shells::builtins();
    let shell = shell.completer(&args.shell).context("no such shell")?;
    // By its path, if that is how it was called: it need not be the one that the shell would find.
    let called = std::env::args_os().next().unwrap_or_else(|| PROGRAM.into());
    let called = std::path::PathBuf::from(called);
    let program = match called.components().count() {
        0 | 1 => PROGRAM.into(),
        _ => std::path::absolute(&called).unwrap_or(called),
    };
    let mut script = Vec::new();
    shell.write_registration(ASKS, PROGRAM, PROGRAM, &program.to_string_lossy(), &mut script)?;
    if shell.name() == "bash" {
        script.extend(WHOLE_WORDS.as_bytes());
    }
    std::io::stdout().write_all(&script).context("cannot write to standard output")
}

/// Answers and ends the program if a shell asks how the command line may go on.
pub fn answer_shell(command: impl Fn() -> Command) {
    CompleteEnv::with_factory(|| suggesting(command())).var(ASKS).complete();
}

/// `command` with what is known of the values of its flags, by what help calls them.
fn suggesting(command: Command) -> Command {
    command.mut_subcommands(|sub| sub.mut_args(suggest))
}

fn suggest(arg: Arg) -> Arg {
    let names = arg.get_value_names().unwrap_or_default();
    let Some(name) = names.first().map(ToString::to_string) else { return arg };
    match (arg.get_id().as_str(), name.as_str()) {
        ("config", _) => arg.add(ArgValueCompleter::new(configs)),
        (_, "CONFIG") => arg.add(ArgValueCandidates::new(|| candidates(Published::all().map(|one| one.name)))),
        (_, "DEVICE") => arg.add(ArgValueCandidates::new(devices)),
        ("reward" | "rewards", _) => arg.add(ArgValueCandidates::new(|| candidates(rewards::names()))),
        ("sampler", _) => arg.add(ArgValueCandidates::new(|| candidates(Kind::ALL.map(Kind::name)))),
        (_, "DIR") => arg.value_hint(ValueHint::DirPath),
        (_, name) if name.starts_with("FILE") => arg.value_hint(ValueHint::FilePath),
        _ => arg,
    }
}

fn candidates<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<CompletionCandidate> {
    names.into_iter().map(CompletionCandidate::new).collect()
}

fn devices() -> Vec<CompletionCandidate> {
    let plans = CHIPS.iter().map(|chip| CompletionCandidate::new(format!("plan:{}", chip.name)));
    candidates(["auto", "cpu", "cuda", "vm", "vm:8.0"]).into_iter().chain(plans).collect()
}

/// Files of configs, and the published ones.
fn configs(typed: &OsStr) -> Vec<CompletionCandidate> {
    let start = typed.to_string_lossy();
    let built_in = Published::all().filter(|one| one.name.starts_with(&*start));
    let built_in = built_in.map(|one| CompletionCandidate::new(one.name).help(Some(one.description().into())));
    let files = PathCompleter::any().filter(|path| path.extension().is_some_and(|e| e == "toml")).complete(typed);
    files.into_iter().chain(built_in).collect()
}
