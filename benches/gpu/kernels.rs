//! What the driver makes of every kernel, beside what ptxas of the toolkit made of it.

use std::collections::HashMap;
use std::time::Instant;

use anyhow::Result;
use engine::device::Device;
use engine::device::gpu::files;
use serde_json::json;

use super::measure::Log;

/// The table of `tools/kernels.py --ptxas`.
const PTXAS: &str = include_str!("../results/ptxas.md");

/// Registers and bytes of stack of each kernel on a chip.
fn assembled(capability: (u32, u32)) -> HashMap<&'static str, (u32, u32)> {
    let chip = format!("sm_{}{}", capability.0, capability.1);
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, on, registers, _, _, _, stack, _] = cells[..] else { return None };
        (on.trim_end_matches('a') == chip).then_some((name, (registers.parse().ok()?, stack.parse().ok()?)))
    };
    PTXAS.lines().filter_map(row).collect()
}

/// Loads every file that the device can run. A kernel with more local memory than ptxas gave it has been spilt.
pub fn run(device: &Device, log: &mut Log) -> Result<()> {
    let Device::Gpu(gpu) = device else { return Ok(()) };
    let facts = gpu.facts().clone();
    let known = assembled(facts.capability);
    let (major, minor) = facts.capability;
    log.line(&json!({
        "kind": "device", "name": facts.name, "capability": format!("{major}.{minor}"),
        "multiprocessors": facts.processors, "memory": facts.memory, "free": gpu.free_memory()?,
    }))?;
    for file in files().filter(|f| f.fits(facts.capability)) {
        let start = Instant::now();
        let entries = match gpu.load(file) {
            Ok(entries) => entries,
            Err(e) => {
                log.check(file.path, false, start, &format!("{e:#}"))?;
                continue;
            }
        };
        let (mut spilt, mut heavier) = (Vec::new(), Vec::new());
        for (name, info) in &entries {
            let Some(info) = info else { continue };
            let ptxas = known.get(name);
            log.line(&json!({
                "kind": "kernel", "file": file.path, "name": name, "registers": info.registers, "local": info.local,
                "shared": info.shared, "threads": info.threads,
                "ptxas_registers": ptxas.map(|p| p.0), "ptxas_stack": ptxas.map(|p| p.1),
            }))?;
            let (registers, stack) = ptxas.copied().unwrap_or((info.registers, 0));
            if info.local > stack {
                spilt.push(format!("{name}: {} bytes of local memory, {stack} by ptxas", info.local));
            }
            if info.registers > registers + 8 {
                heavier.push(format!("{name}: {} registers, {registers} by ptxas", info.registers));
            }
        }
        let found = [&spilt[..], &heavier[..]].concat();
        // The rest is in the lines of the kernels.
        let detail: String = found.iter().take(3).map(|f| format!("; {f}")).collect();
        let more = if found.len() > 3 { format!("; and {} more", found.len() - 3) } else { String::new() };
        let detail = format!("{} kernels{detail}{more}", entries.len());
        log.check(file.path, spilt.is_empty(), start, &detail)?;
    }
    Ok(())
}
