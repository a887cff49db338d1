//! Every barrier, arrival, fence, commit and wait of the probe kernels is taken out in turn; each mutant must be found.

use std::collections::BTreeMap;
use std::sync::Arc;

use ptxvm::{Module, Options, Schedule};

use crate::probes::cases::{CASES, Case};
use crate::probes::{Outcome, modules, play, text};

/// Lines of synchronisation. A `try_wait` is made to succeed, everything else is deleted.
fn synchronises(line: &str) -> bool {
    let words = [
        "bar.sync",
        "bar.arrive",
        "mbarrier.arrive",
        "mbarrier.try_wait",
        "fence.",
        "wgmma.fence",
        "wgmma.commit",
        "wgmma.wait",
        "cp.async.commit_group",
        "cp.async.wait_group",
        "cp.async.bulk.commit_group",
        "cp.async.bulk.wait_group",
    ];
    let line = line.trim_start();
    !line.starts_with("//") && words.iter().any(|w| line.contains(w))
}

fn mutated(line: &str) -> String {
    let Some((head, rest)) = line.split_once("mbarrier.try_wait") else { return String::new() };
    let predicate = rest.split_whitespace().nth(1).unwrap_or_default().trim_end_matches(',');
    let end = if line.trim_end().ends_with('}') { "}" } else { "" };
    format!("{head}setp.eq.s32 {predicate}, 0, 0;{end}")
}

/// The ways a mutant is run: results alone, eager and lazy, and with the checker.
fn ways() -> [(&'static str, Options); 4] {
    let o = |schedule, check| Options { schedule, check, limit: 1 << 22, ..Options::default() };
    [
        ("eager", o(Schedule::Eager, false)),
        ("lazy", o(Schedule::Lazy, false)),
        ("checked, eager", o(Schedule::Eager, true)),
        ("checked, lazy", o(Schedule::Lazy, true)),
    ]
}

fn same(a: &[Outcome], b: &[Outcome]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.bytes == b.bytes)
}

fn mutants_of(case: &Case, counts: &mut BTreeMap<&'static str, usize>, missed: &mut Vec<String>) -> usize {
    let mut all = modules(case.files);
    let (want, _) = play(case, &all, true, Options::default()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let mut total = 0;
    for &file in case.files {
        let base = text(file);
        let lines: Vec<&str> = base.lines().collect();
        let mut kernel = "";
        for (at, line) in lines.iter().enumerate() {
            if let Some((_, k)) = line.split_once(".entry ") {
                kernel = k.trim_end_matches('(');
            }
            if !synchronises(line) || case.name == "step" && kernel != "step" {
                continue;
            }
            let mut changed = lines.clone();
            let new = mutated(line);
            changed[at] = &new;
            let module = Module::parse(file, &changed.join("\n")).unwrap_or_else(|e| panic!("{e}"));
            all.insert(file, Arc::new(module));
            total += 1;
            let mut found = false;
            let mut said = Vec::new();
            for (way, options) in ways() {
                let r = play(case, &all, true, options);
                let seen = r.as_ref().map_or(true, |(out, _)| !same(out, &want));
                found |= seen;
                *counts.entry(way).or_default() += usize::from(seen);
                said.push(match r {
                    Err(e) => e,
                    _ if seen => "other bits".into(),
                    _ => "-".into(),
                });
            }
            println!("{} {kernel}:{} {} | {}", case.name, at + 1, line.trim(), said.join(" | "));
            if !found {
                missed.push(format!("{} {kernel}:{} {}", case.name, at + 1, line.trim()));
            }
        }
        all.extend(modules(&[file]));
    }
    total
}

#[test]
fn every_barrier_fence_and_wait_is_missed_when_it_is_gone() {
    let (mut counts, mut missed, mut total) = (BTreeMap::new(), Vec::new(), 0);
    for case in CASES.iter().filter(|c| c.name != "noise") {
        total += mutants_of(case, &mut counts, &mut missed);
    }
    println!("{total} mutants, found {counts:?}");
    assert!(missed.is_empty(), "{} of {total} mutants are found by no run:\n{}", missed.len(), missed.join("\n"));
    assert_eq!(total, 259, "the kernels have changed");
}
