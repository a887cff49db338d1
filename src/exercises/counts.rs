use std::fmt::Write;

use super::*;
use crate::device::gpu::{self, HOPPER, PORTABLE};

/// Set to write `counts.txt` anew.
pub(super) const RENEW: &str = "ENGINE_RENEW_COUNTS";

/// What a change of a kernel costs is seen: instructions, bytes, sectors of global memory and bank conflicts of every kernel
/// are those of `counts.txt`.
#[test]
fn counts_of_all_kernels_are_those_committed() {
    let mut counts = BTreeMap::new();
    let all = |f: gpu::File| {
        ptxvm::Module::parse(f.path, f.text).unwrap().entries().into_iter().map(str::to_string).collect()
    };
    let entries: Vec<(gpu::File, Vec<String>)> = gpu::files().map(|f| (f, all(f))).collect();
    // A kernel is counted on the device that its file is for.
    let is_of = |entry: &String, capability| {
        entries.iter().any(|(f, names)| f.fits(PORTABLE) == (capability == PORTABLE) && names.contains(entry))
    };
    for (exercise, capability) in even().iter().flat_map(|e| [(e, PORTABLE), (e, HOPPER)]) {
        let vm = Vm::new(capability, ptxvm::Options { check: false, ..Default::default() });
        let of = vm.counts();
        exercise.bits(vm).unwrap_or_else(|e| panic!("{}: {e}", exercise.name));
        for (entry, stats) in of.lock().unwrap().iter().filter(|(entry, _)| is_of(entry, capability)) {
            let all: &mut ptxvm::Stats = counts.entry(entry.clone()).or_default();
            all.add(stats);
        }
    }
    let never: Vec<_> = entries.iter().flat_map(|(_, names)| names).filter(|e| !counts.contains_key(*e)).collect();
    assert!(never.is_empty(), "nothing launches {never:?}");
    let mut now = String::new();
    for (entry, stats) in &counts {
        let list: Vec<_> = stats.list().iter().map(|(name, n)| format!("{name} {n}")).collect();
        writeln!(now, "{entry}: {}", list.join(", ")).expect("text");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/exercises/counts.txt");
    if std::env::var_os(RENEW).is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let known = std::fs::read_to_string(path).unwrap_or_default();
    let changed: Vec<_> = now.lines().filter(|line| !known.lines().any(|k| k == *line)).collect();
    assert!(
        known == now,
        "{path} is not what kernels take; if that is meant, run this with {RENEW}=1:\n{}",
        changed.join("\n")
    );
}
