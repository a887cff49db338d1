use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use engine::bench::peak;
use engine::device::gpu::{self, Facts, Gpu};
use engine::device::{DType, Device, MachineMemory, machine_memory};
use engine::ops::cpu::gemm;
use engine::telemetry::bytes;
use serde::Serialize;

use super::DeviceArg;
use super::cuda::{self, Cuda};
use super::json::{self, JsonArg};

/// Say what this machine offers: cores, vector instructions, memory, speed, CUDA.
///
/// Takes about a second, most of it measuring matrix products.
#[derive(clap::Args)]
#[command(after_long_help = json::keys(KEYS))]
pub struct Args {
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    device: DeviceArg,
}

/// How long one speed is measured.
const MEASURED: Duration = Duration::from_millis(400);

const KEYS: &[(&str, &str)] = &[
    ("processor", "its name"),
    ("cores", "threads it runs at once"),
    ("vectors", "instruction sets, and whether it has them"),
    ("memory.total", "bytes"),
    ("memory.available", "bytes"),
    ("memory.limit", "bytes, if a control group or ulimit sets a limit"),
    ("disk.free", "bytes in the current folder"),
    ("disk.total", "bytes"),
    ("matmul", "how products are computed with weights in f32 and bf16"),
    ("gflops.f32", "measured, with f32 weights"),
    ("gflops.bf16", "measured, with bf16 weights"),
    ("gflops.threads", "with so many"),
    ("device.kind", "cpu or gpu: what --device stands for"),
    ("device.facts", "of a GPU: name, capability, processors, memory"),
    ("device.free", "of a GPU: bytes"),
    ("kernels", "of a GPU: what its driver made of the kernels, in words"),
    ("cuda.driver.name", "libcuda"),
    ("cuda.driver.path", "file"),
    ("cuda.driver.unusable", "why, if it is not usable"),
    ("cuda.version", "of CUDA that the driver supports"),
    ("cuda.devices[].name", "and capability, processors, memory"),
    ("cuda.devices[].unusable", "why, if it is not usable"),
    ("cuda.libraries[].name", "others that engine can use"),
    ("cuda.libraries[].path", "file"),
    ("cuda.libraries[].unusable", "why, if it is not usable"),
];

/// What this machine offers.
#[derive(Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    vectors: BTreeMap<&'static str, bool>,
    memory: Option<MachineMemory>,
    disk: Option<Disk>,
    matmul: BTreeMap<&'static str, &'static str>,
    gflops: Speeds,
    device: Used,
    kernels: Option<String>,
    cuda: Cuda,
}

/// The disk of the current folder, in bytes.
#[derive(Serialize)]
struct Disk {
    free: u64,
    total: u64,
}

/// GFLOP/s of products.
#[derive(Serialize)]
struct Speeds {
    f32: f64,
    bf16: f64,
    threads: usize,
}

/// What `--device` stands for here.
#[derive(Serialize)]
struct Used {
    kind: &'static str,
    facts: Option<Facts>,
    free: Option<u64>,
}

pub fn run(args: Args) -> Result<()> {
    let device = args.device.open()?;
    let (facts, loaded) = match &device {
        Device::Gpu(gpu) => (Some(gpu.facts().clone()), Some(kernels(gpu))),
        Device::Cpu | Device::Plan(_) => (None, None),
    };
    let machine = Machine {
        processor: processor(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        vectors: vectors(),
        memory: machine_memory(),
        disk: disk(),
        matmul: [("f32", gemm::path(DType::F32)), ("bf16", gemm::path(DType::Bf16))].into(),
        gflops: args.device.on_cpu(|| Ok(speeds()))?,
        device: Used {
            kind: if facts.is_some() { "gpu" } else { "cpu" },
            free: if let Device::Gpu(gpu) = &device { Some(gpu.free_memory()?) } else { None },
            facts,
        },
        kernels: loaded,
        cuda: Cuda::probe(),
    };
    args.json.answer(&machine, || machine.text())
}

impl Machine {
    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |label: &str, text: String| {
            out += format!("{label:16}{text}").trim_end();
            out.push('\n');
        };
        line("processor", format!("{}, {} cores", self.processor, self.cores));
        let vectors = self.vectors.iter().map(|(name, there)| format!("{name} {}", if *there { "yes" } else { "no" }));
        let vectors = vectors.collect::<Vec<_>>().join(", ");
        let unknown = "those of the target the program was built for";
        line("vectors", if vectors.is_empty() { unknown.into() } else { vectors });
        line("memory", self.memory.map_or_else(|| "unknown: no /proc/meminfo".into(), memory_text));
        line(
            "disk",
            self.disk.as_ref().map_or_else(
                || "unknown on this system".into(),
                |d| format!("{} free of {} in the current folder", bytes(d.free), bytes(d.total)),
            ),
        );
        for (name, how) in self.matmul.iter().rev() {
            line(&format!("{name} matmul"), how.to_string());
        }
        let Speeds { f32, bf16, threads } = self.gflops;
        line("speed", format!("f32 {f32:.0} GFLOP/s, bf16 {bf16:.0} GFLOP/s with {threads} threads"));
        line("device", self.device.text());
        self.kernels.iter().for_each(|text| line("kernels", text.clone()));
        line("CUDA", String::new());
        self.cuda.lines().into_iter().for_each(|(label, text)| line(&format!("  {label}"), text));
        out
    }
}

impl Used {
    fn text(&self) -> String {
        let free = self.free.map(|free| format!("; {} free", bytes(free))).unwrap_or_default();
        self.facts.as_ref().map_or_else(|| self.kind.into(), |facts| cuda::describe(facts) + &free)
    }
}

/// What the driver makes of all kernels; the first time it compiles them, which takes a while.
fn kernels(gpu: &Gpu) -> String {
    let (start, mut names, mut spilt, mut refused) = (Instant::now(), 0, 0, String::new());
    let (mut files, mut registers) = (0, 0);
    for file in gpu::files().filter(|f| f.fits(gpu.facts().capability)) {
        match gpu.load(file) {
            Ok(entries) => {
                (files, names) = (files + 1, names + entries.len());
                let known = entries.into_iter().filter_map(|(_, info)| info);
                known.for_each(|info| {
                    spilt += usize::from(info.local > 0);
                    registers = registers.max(info.registers);
                });
            }
            Err(why) => refused += &format!("; {} refused: {why:#}", file.path),
        }
    }
    let compiled = if registers == 0 { "interpreted".into() } else { format!("at most {registers} registers") };
    let seconds = start.elapsed().as_secs_f64();
    format!("{names} in {files} files, loaded in {seconds:.1} s; {compiled}, {spilt} with local memory{refused}")
}

/// The value of the first line `key : value` of a file under /proc.
fn proc_value(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

fn processor() -> String {
    proc_value("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into())
}

#[cfg(target_arch = "x86_64")]
fn vectors() -> BTreeMap<&'static str, bool> {
    // The standard library cannot look for AMX yet.
    let amx = proc_value("/proc/cpuinfo", "flags").is_some_and(|f| f.split(' ').any(|f| f == "amx_bf16"));
    [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("amx-bf16", amx),
    ]
    .into()
}

#[cfg(not(target_arch = "x86_64"))]
fn vectors() -> BTreeMap<&'static str, bool> {
    BTreeMap::new()
}

fn memory_text(memory: MachineMemory) -> String {
    let limit = memory.limit.map(|l| format!(", limited to {} by a control group or ulimit", bytes(l)));
    format!("{}, {} available{}", bytes(memory.total), bytes(memory.available), limit.unwrap_or_default())
}

#[cfg(unix)]
fn disk() -> Option<Disk> {
    let s = rustix::fs::statvfs(".").ok()?;
    let [free, total] = [s.f_bavail, s.f_blocks].map(|n| n * s.f_frsize);
    Some(Disk { free, total })
}

#[cfg(not(unix))]
fn disk() -> Option<Disk> {
    None
}

/// GFLOP/s of products with f32 and bf16 weights.
fn speeds() -> Speeds {
    let speed = |dtype| peak::products(&Device::Cpu, dtype, MEASURED).map_or(f64::NAN, |peak| peak.rate / 1e9);
    Speeds { f32: speed(DType::F32), bf16: speed(DType::Bf16), threads: rayon::current_num_threads() }
}
