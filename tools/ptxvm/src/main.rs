//! `ptxvm run`: one kernel of one file, with buffers from files and to files.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ptxvm::{Arg, Config, Memory, Module, Options, Report, Schedule};

/// Runs NVIDIA PTX on the processor, and finds races, missing fences and waits while it does.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a kernel. Exit code 0, 1 with findings, 2 for a usage or parse error.
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// The PTX.
    file: PathBuf,
    /// Name of the kernel.
    #[arg(long)]
    entry: String,
    /// Blocks: X[,Y[,Z]].
    #[arg(long, default_value = "1", value_parser = size)]
    grid: [u32; 3],
    /// Threads of a block: X[,Y[,Z]].
    #[arg(long, default_value = "1", value_parser = size)]
    block: [u32; 3],
    /// Bytes of dynamic shared memory.
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    shared: u32,
    /// An argument, in the kernel's order: in:FILE (a buffer with the file's bytes), zero:BYTES, same:N (argument N's
    /// buffer again), u32:, s32:, u64: and f32: values.
    #[arg(long = "arg", value_name = "KIND:VALUE", allow_hyphen_values = true)]
    args: Vec<String>,
    /// Write argument N's buffer to a file after the launch.
    #[arg(long = "out", value_name = "N=FILE", value_parser = output)]
    outs: Vec<(usize, PathBuf)>,
    /// The order of what a device leaves open: eager, lazy, ascending, descending or random:SEED.
    #[arg(long, default_value_t = Schedule::Eager)]
    schedule: Schedule,
    /// Move results of approximate instructions inside of the bounds that the ISA gives them, by a hash of this number.
    #[arg(long, value_name = "SEED")]
    perturb: Option<u64>,
    /// Print findings and counts as JSON.
    #[arg(long)]
    json: bool,
}

fn size(s: &str) -> Result<[u32; 3], String> {
    let parts: Vec<u32> =
        s.split(',').map(|n| n.parse().map_err(|_| format!("`{n}`, expected a number"))).collect::<Result<_, _>>()?;
    match parts[..] {
        [x] => Ok([x, 1, 1]),
        [x, y] => Ok([x, y, 1]),
        [x, y, z] => Ok([x, y, z]),
        _ => Err(format!("{} numbers, expected 1 to 3", parts.len())),
    }
}

fn output(s: &str) -> Result<(usize, PathBuf), String> {
    let (n, file) = s.split_once('=').ok_or("expected N=FILE")?;
    Ok((n.parse().map_err(|_| format!("`{n}`, expected the number of an argument"))?, file.into()))
}

/// An argument, and the buffer it points to.
struct Given {
    arg: Arg,
    buffer: Option<(u64, u64)>,
}

fn argument(memory: &mut Memory, before: &[Given], text: &str) -> Result<Given, String> {
    let (kind, value) = text.split_once(':').ok_or_else(|| format!("--arg {text}: expected KIND:VALUE"))?;
    let bad = |what: &str| format!("--arg {text}: expected {what}");
    let plain = |arg| Ok(Given { arg, buffer: None });
    let buffer = |p: ptxvm::Result<u64>, len| {
        let p = p.map_err(|e| format!("--arg {text}: {e}"))?;
        Ok(Given { arg: Arg::Ptr(p), buffer: Some((p, len)) })
    };
    match kind {
        "in" => {
            let data = std::fs::read(value).map_err(|e| format!("--arg {text}: {e}"))?;
            buffer(memory.alloc_from(&data), data.len() as u64)
        }
        "zero" => {
            let n = value.parse().map_err(|_| bad("a number of bytes"))?;
            buffer(memory.alloc_zeroed(n), n)
        }
        "same" => {
            let n: usize = value.parse().map_err(|_| bad("the number of an argument"))?;
            let g = before
                .get(n)
                .filter(|g| g.buffer.is_some())
                .ok_or_else(|| bad("an earlier argument that is a buffer"))?;
            Ok(Given { arg: g.arg.clone(), buffer: g.buffer })
        }
        "u32" => plain(Arg::U32(value.parse().map_err(|_| bad("a number of 32 bits"))?)),
        "s32" => plain(Arg::S32(value.parse().map_err(|_| bad("a signed number of 32 bits"))?)),
        "u64" => plain(Arg::U64(value.parse().map_err(|_| bad("a number of 64 bits"))?)),
        "f32" => plain(Arg::F32(value.parse().map_err(|_| bad("a number"))?)),
        _ => Err(bad("one of in, zero, same, u32, s32, u64 and f32")),
    }
}

/// The report, or one line that says what is wrong with what was asked for.
fn run(r: &Run) -> Result<Report, String> {
    let name = r.file.display().to_string();
    let text = std::fs::read(&r.file).map_err(|e| format!("{name}: {e}"))?;
    let text = String::from_utf8(text).map_err(|_| format!("{name}: not a text"))?;
    let module = Module::parse(&name, &text).map_err(|e| e.to_string())?;
    let mut memory = Memory::new();
    let mut given: Vec<Given> = Vec::new();
    for a in &r.args {
        let g = argument(&mut memory, &given, a)?;
        given.push(g);
    }
    for (n, _) in &r.outs {
        if given.get(*n).is_none_or(|g| g.buffer.is_none()) {
            return Err(format!("--out {n}: argument {n} is no buffer"));
        }
    }
    let config = Config { grid: r.grid, block: r.block, shared: r.shared };
    let args: Vec<Arg> = given.iter().map(|g| g.arg.clone()).collect();
    let options = Options { schedule: r.schedule, perturb: r.perturb, ..Options::default() };
    let report = module.launch(&mut memory, &r.entry, &config, &args, &options).map_err(|e| e.to_string())?;
    for (n, file) in &r.outs {
        if let Some((p, len)) = given[*n].buffer {
            let bytes = memory.bytes(p, len).map_err(|e| e.to_string())?;
            std::fs::write(file, bytes).map_err(|e| format!("{}: {e}", file.display()))?;
        }
    }
    Ok(report)
}

fn json(r: &Report) -> serde_json::Value {
    let findings: Vec<serde_json::Value> = r
        .findings
        .iter()
        .map(|f| {
            serde_json::json!({
                "kind": f.kind.name(), "file": f.file, "kernel": f.kernel, "line": f.line, "instruction": f.instruction,
                "source": f.source.as_ref().map(|(file, line)| format!("{file}:{line}")),
                "block": f.block, "thread": f.thread, "address": f.address, "message": f.message,
            })
        })
        .collect();
    let stats: serde_json::Map<String, serde_json::Value> =
        r.stats.list().iter().map(|&(n, v)| (n.to_string(), v.into())).collect();
    serde_json::json!({ "findings": findings, "stats": stats })
}

fn main() -> ExitCode {
    let Command::Run(r) = Cli::parse().command;
    match run(&r) {
        Err(e) => {
            eprintln!("ptxvm: {e}");
            ExitCode::from(2)
        }
        Ok(report) => {
            if r.json {
                println!("{:#}", json(&report));
            } else {
                report.findings.iter().for_each(|f| println!("{f}"));
                let stats: Vec<String> = report.stats.list().iter().map(|(n, v)| format!("{n} {v}")).collect();
                println!("{}", stats.join(", "));
            }
            ExitCode::from(u8::from(!report.findings.is_empty()))
        }
    }
}
