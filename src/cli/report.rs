use std::path::PathBuf;

use anyhow::Result;
use engine::report;
use engine::telemetry::say;

/// Make a page of one or several runs: curves, pictures, guards, time, configuration.
///
/// One HTML file with everything in it, to be opened in a browser or sent to someone. Several runs are drawn over one
/// another, with the keys in which they differ. engine train writes such a page into its output folder by itself.
#[derive(clap::Args)]
pub struct Args {
    /// Output folders of runs.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// File to write; report.html in the folder of a single run, or in the current folder for several, if left out.
    #[arg(long, value_name = "FILE.html")]
    output: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    let output = args.output.unwrap_or_else(|| match args.runs.as_slice() {
        [run] => run.join(report::FILE),
        _ => report::FILE.into(),
    });
    report::write(&args.runs, &output)?;
    say(&format!("wrote {}", output.display()));
    Ok(())
}
