use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
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
    if let Some(dir) = &args.dir {
        output_folder(dir)?;
        return clap_mangen::generate_to(Cli::command(), dir)
            .with_context(|| format!("cannot write to {}", dir.display()));
    }
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    let page = match &args.subcommand {
        None => command,
        Some(name) => match command.find_subcommand(name) {
            Some(found) => found.clone(),
            None => bail!(
                "no subcommand '{name}', expected one of {}{}",
                names.join(", "),
                did_you_mean(name, names.iter().copied())
            ),
        },
    };
    let mut text = Vec::new();
    Man::new(page).render(&mut text)?;
    std::io::stdout().write_all(&text).context("cannot write to standard output")
}
