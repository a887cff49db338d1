use std::time::{Duration, Instant};

use anyhow::Result;
use engine::bench::peak;
use engine::device::gpu::{self, Gpu};
use engine::device::{DType, Device, machine_memory};
use engine::ops::cpu::gemm;
use engine::telemetry::bytes;

use super::{DeviceArg, cuda};

/// Say what this machine offers: cores, vector instructions, memory, speed, CUDA.
///
/// Takes about a second, most of it measuring matrix products.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    device: DeviceArg,
}

/// How long one speed is measured.
const MEASURED: Duration = Duration::from_millis(400);

pub fn run(args: Args) -> Result<()> {
    let device = args.device.open()?;
    let line = |label: &str, text: String| println!("{}", format!("{label:16}{text}").trim_end());
    line(
        "processor",
        format!("{}, {} cores", processor(), std::thread::available_parallelism().map_or(1, usize::from)),
    );
    line("vectors", features());
    line("memory", memory());
    line("disk", disk());
    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::Bf16)] {
        line(&format!("{name} matmul"), gemm::path(dtype).to_string());
    }
    let [single, half, threads] = args.device.on_cpu(|| Ok(speeds()))?;
    line("speed", format!("f32 {single:.0} GFLOP/s, bf16 {half:.0} GFLOP/s with {threads} threads"));
    line("device", used(&device)?);
    if let Device::Gpu(gpu) = &device {
        line("kernels", kernels(gpu));
    }
    line("CUDA", String::new());
    cuda::report(|label, text| line(&format!("  {label}"), text));
    Ok(())
}

/// What `--device` stands for here.
fn used(device: &Device) -> Result<String> {
    Ok(match device {
        Device::Gpu(gpu) => format!("{}; {} free", cuda::describe(gpu.facts()), bytes(gpu.free_memory()?)),
        Device::Cpu | Device::Plan(_) => "cpu".into(),
    })
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
fn features() -> String {
    // The standard library cannot look for AMX yet.
    let amx = proc_value("/proc/cpuinfo", "flags").is_some_and(|f| f.split(' ').any(|f| f == "amx_bf16"));
    let found = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("amx-bf16", amx),
    ];
    found.map(|(name, there)| format!("{name} {}", if there { "yes" } else { "no" })).join(", ")
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> String {
    "those of the target the program was built for".into()
}

fn memory() -> String {
    let Some(memory) = machine_memory() else { return "unknown: no /proc/meminfo".into() };
    let limit = memory.limit.map(|l| format!(", limited to {} by a control group or ulimit", bytes(l)));
    format!("{}, {} available{}", bytes(memory.total), bytes(memory.available), limit.unwrap_or_default())
}

#[cfg(unix)]
fn disk() -> String {
    match rustix::fs::statvfs(".") {
        Ok(s) => {
            let [free, total] = [s.f_bavail, s.f_blocks].map(|n| bytes(n * s.f_frsize));
            format!("{free} free of {total} in the current folder")
        }
        Err(e) => format!("unknown: {e}"),
    }
}

#[cfg(not(unix))]
fn disk() -> String {
    "unknown on this system".into()
}

/// GFLOP/s of products with f32 and bf16 weights, and the number of threads.
fn speeds() -> [f64; 3] {
    let speed = |dtype| peak::products(&Device::Cpu, dtype, MEASURED).map_or(f64::NAN, |peak| peak.rate / 1e9);
    [speed(DType::F32), speed(DType::Bf16), rayon::current_num_threads() as f64]
}
