//! What a GPU makes of the kernels: what its driver compiles them to, whether its instructions do what the ISA says and the
//! kernels what the interpreter does, and how long they take beside cuBLASLt at the shapes of Stable Diffusion 3.5 Medium. `tools/gpu_check.sh` is what runs it.
//!
//!     cargo bench --bench gpu -- --device cuda --log OUT/engine.jsonl [OP..]
//!     cargo bench --bench gpu -- --table OUT

mod kernels;
mod measure;
mod network;
mod ops;
mod same;
mod semantics;
mod table;
mod variants;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use engine::device::Device;

use measure::{Log, Session};

#[derive(Parser)]
struct Args {
    /// Device: cuda, cuda:N, or vm, which interprets the kernels and measures nothing.
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Tiny shapes and two runs, to see that everything is there.
    #[arg(long)]
    small: bool,
    /// File that gets a line of JSON for every result.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// What to do: kernels, semantics, same, variants or bench.
    #[arg(long, value_delimiter = ',', default_value = "kernels,semantics,same,variants,bench")]
    parts: Vec<String>,
    /// Begin nothing after so many seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Seed of all inputs.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for 5 GB of random weights, which are deleted at the end.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Print the results in a folder of such files, and do nothing else.
    #[arg(long, value_name = "DIR")]
    table: Option<PathBuf>,
    /// Only these ops are timed.
    ops: Vec<String>,
    /// What cargo gives to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The device of this name, opened anew: with no graphs, and free of earlier failures.
fn open(name: &str) -> Result<Device> {
    match name.split_once(':') {
        None if name == "cuda" => Ok(Device::cuda(0)?),
        None if name == "vm" => Device::vm(ptxvm::Options::default()),
        Some(("cuda", ordinal)) => Ok(Device::cuda(ordinal.parse()?)?),
        _ => bail!("device '{name}', expected cuda, cuda:N or vm"),
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(folder) = &args.table {
        return table::print(folder);
    }
    if let Err(why) = open(&args.device) {
        println!("gpu: {why:#}; nothing was run");
        return Ok(());
    }
    let end = Instant::now() + Duration::from_secs(args.seconds);
    engine::device::with_threads(0, || run(&args, end))?
}

fn run(args: &Args, end: Instant) -> Result<()> {
    let mut log = Log::to(args.log.as_deref())?;
    for part in &args.parts {
        match part.as_str() {
            "kernels" => kernels::run(&open(&args.device)?, &mut log)?,
            "semantics" => semantics::run(|| open(&args.device), args.small, &mut log)?,
            "same" => same::run(|| open(&args.device), args.seed, args.small, &mut log)?,
            "bench" => time(args, "bench", ops::ALL.iter().chain(&network::ALL), end, &mut log)?,
            "variants" => time(args, "variants", variants::ALL, end, &mut log)?,
            other => bail!("part '{other}', expected kernels, semantics, same, variants or bench"),
        }
    }
    if log.failures > 0 { bail!("{} of the checks failed", log.failures) } else { Ok(()) }
}

/// Times ops, each on a device of its own.
fn time<'a>(
    args: &Args,
    part: &str,
    ops: impl IntoIterator<Item = &'a (&'a str, ops::Bench)>,
    end: Instant,
    log: &mut Log,
) -> Result<()> {
    for (op, f) in ops {
        if !args.ops.is_empty() && !args.ops.iter().any(|o| o == op) {
            continue;
        }
        let start = Instant::now();
        let mut session = Session::new(open(&args.device)?, op, args.small, args.seed, end, log);
        let done = f(&mut session, args.scratch.as_deref()).and_then(|()| session.device.check());
        let detail = match &done {
            Ok(()) => String::new(),
            Err(e) => format!("{e:#}; --seed {}", args.seed),
        };
        log.check(&format!("{part} {op}"), done.is_ok(), start, &detail)?;
    }
    Ok(())
}
