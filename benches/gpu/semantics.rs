//! Whether a GPU's instructions do what the PTX ISA says, and what the interpreter, which all tests of kernels rest on, makes
//! of them.

use std::time::Instant;

use anyhow::{Result, ensure};
use engine::device::gpu::semantics::{Check, checks};
use engine::device::{Device, Tensor};

use super::measure::Log;

/// Inputs of a conversion or a function on a GPU, and where it is interpreted.
const MANY: usize = 1 << 20;
const FEW: usize = 1 << 11;

pub fn run(open: impl Fn() -> Result<Device>, small: bool, log: &mut Log) -> Result<()> {
    for check in checks() {
        let start = Instant::now();
        let device = open()?;
        let Device::Gpu(gpu) = &device else { return Ok(()) };
        if !check.fits(gpu) {
            continue;
        }
        let is_interpreted = gpu.stream().is_none();
        let n = if small || is_interpreted { FEW } else { MANY };
        let done = check.run(&device, n).and_then(|said| {
            if check.exact && !is_interpreted {
                compare(check, &device, n)?;
            }
            Ok(said)
        });
        let detail = done.as_ref().map_or_else(|e| format!("{e:#}"), Clone::clone);
        log.check(&format!("semantics: {}", check.name), done.is_ok(), start, &detail)?;
    }
    Ok(())
}

/// The bits of the interpreter of the same chip.
fn compare(check: &Check, device: &Device, n: usize) -> Result<()> {
    let Device::Gpu(gpu) = device else { return Ok(()) };
    let vm = Device::vm_of(gpu.facts().capability, ptxvm::Options::default())?;
    let bytes = |device| check.outputs(device, n).iter().map(Tensor::to_raw).collect::<Vec<_>>();
    let (got, want) = (bytes(device), bytes(&vm));
    vm.check()?;
    let differs = got.iter().zip(&want).position(|(g, w)| g != w);
    ensure!(differs.is_none(), "result {} has other bits on the interpreter", differs.unwrap_or(0));
    Ok(())
}
