//! PTX that is not ours, parsed, decoded and run: whatever it says, the interpreter answers with an error or a finding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ptxvm::{Arg, Config, Memory, Module, Options, Schedule};

/// Bytes of the buffer that every pointer gets.
const BUFFER: u64 = 4096;

fuzz_target!(|data: &[u8]| {
    let Ok(module) = Module::parse("fuzz.ptx", &String::from_utf8_lossy(data)) else { return };
    let _ = module.check();
    for entry in module.entries().into_iter().take(4) {
        let Ok(params) = module.params(entry) else { continue };
        for schedule in [Schedule::Eager, Schedule::Random(1)] {
            let mut memory = Memory::new();
            let Ok(buffer) = memory.alloc_zeroed(BUFFER) else { return };
            let arg = |size: u32| if size == 8 { Arg::Ptr(buffer) } else { Arg::Bytes(vec![1; size as usize]) };
            let args: Vec<Arg> = params.iter().map(|p| arg(p.size as u32)).collect();
            let config = Config { grid: [2, 1, 1], block: [40, 1, 1], shared: 1024 };
            let options = Options { schedule, limit: 2000, ..Options::default() };
            let _ = module.launch(&mut memory, entry, &config, &args, &options);
        }
    }
});
