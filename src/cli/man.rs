use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use engine::io::{did_you_mean, output_folder};

use super::Cli;

/// Print a manual page, or write all of them to a folder.
///
/// engine man | man -l - shows the page of the program, engine man train | man -l - that of a subcommand.
/// engine man --dir ~/.local/share/man/man1 installs them: then man engine and man engine-train find them.
#[derive(clap::Args)]
pub struct Args {
    /// Subcommand whose page to print; the program's if left out.
    #[arg(value_name = "SUBCOMMAND", conflicts_with = "dir")]
    subcommand: Option<String>,
    /// Folder to write all pages to, such as ~/.local/share/man/man1.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    if let Some(dir) = &args.dir {
        output_folder(dir)?;
        let all = std::iter::once(&command).chain(command.get_subcommands());
        for one in all {
            page(one).generate_to(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
        }
        return Ok(());
    }
    let wanted = match &args.subcommand {
        None => &command,
        Some(name) => command.find_subcommand(name).with_context(|| {
            let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
            let hint = did_you_mean(name, names.iter().copied());
            format!("no subcommand '{name}', expected one of {}{hint}", names.join(", "))
        })?,
    };
    let mut text = Vec::new();
    page(wanted).render(&mut text)?;
    std::io::stdout().write_all(&text).context("cannot write to standard output")
}

/// The page of the program or a subcommand.
fn page(command: &Command) -> Man {
    Man::new(command.clone()).source(concat!("engine ", env!("CARGO_PKG_VERSION"))).manual("engine")
}
