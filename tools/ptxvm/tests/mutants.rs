//! Every barrier, arrival, fence, commit and wait of the probe kernels is taken out in turn; each mutant must be found.

use std::collections::BTreeMap;
use std::sync::Arc;

use ptxvm::{Module, Mutant, Options, Schedule};

use crate::probes::cases::{CASES, Case};
use crate::probes::{Outcome, modules, play, text};

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
        for mutant in ptxvm::mutants(&text(file)) {
            let Mutant { line, kernel, what, text } = mutant;
            if case.name == "step" && kernel != "step" {
                continue;
            }
            let module = Module::parse(file, &text).unwrap_or_else(|e| panic!("{e}"));
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
            println!("{} {kernel}:{line} {what} | {}", case.name, said.join(" | "));
            if !found {
                missed.push(format!("{} {kernel}:{line} {what}", case.name));
            }
        }
        all.extend(modules(&[file]));
    }
    total
}

fn check(name: &str, expected: usize) {
    let case = CASES.iter().find(|c| c.name == name).unwrap();
    let (mut counts, mut missed) = (BTreeMap::new(), Vec::new());
    let total = mutants_of(case, &mut counts, &mut missed);
    println!("{name}: {total} mutants, found {counts:?}");
    assert!(missed.is_empty(), "{} of {total} mutants are found by no run:\n{}", missed.len(), missed.join("\n"));
    assert_eq!(total, expected, "the kernel has changed");
    for way in ["checked, eager", "checked, lazy"] {
        assert_eq!(counts[way], total, "{way}: a result must not be needed to find a mutant");
    }
}

/// How many there are in each file: 259 in all.
macro_rules! mutants {
    ($($name:ident $n:literal)*) => {$(
        #[test]
        fn $name() {
            check(stringify!($name), $n);
        }
    )*};
}

mutants! { gemm_wgmma 17 gemm_mma 6 attn_fwd 23 attn_bwd 67 layouts 28 linear 53 attn_dims 46 attn_mma 4 conv 14 step 1 }

/// Changes a text as a diff without context says.
fn patched(text: &str, diff: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    let (mut at, mut moved) = (0usize, 0isize);
    for d in diff.lines() {
        if let Some(place) = d.strip_prefix("@@ -") {
            let old: Vec<usize> = place.split(' ').next().unwrap().split(',').map(|n| n.parse().unwrap()).collect();
            // nothing taken away: what is added goes after that line
            let first = if old.get(1) == Some(&0) { old[0] } else { old[0] - 1 };
            at = first.checked_add_signed(moved).unwrap();
        } else if let Some(gone) = d.strip_prefix('-') {
            assert_eq!(lines.remove(at), gone);
            moved -= 1;
        } else if let Some(new) = d.strip_prefix('+') {
            lines.insert(at, new);
            at += 1;
            moved += 1;
        }
    }
    lines.join("\n")
}

/// Mistakes that are no missing line: a stage released by one warp for its group, a proxy fence on the wrong side of a
/// barrier, waits one too short, counts one off, a mask forgotten. Each is found, by results or by the checker.
#[test]
fn planted_mistakes_are_found() {
    let folder = format!("{}/tests/planted", env!("CARGO_MANIFEST_DIR"));
    let mut n = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        let case = CASES.iter().find(|c| name.starts_with(&format!("{}.", c.name))).unwrap();
        let file = case.files[0];
        let mut all = modules(case.files);
        let (want, _) = play(case, &all, true, Options::default()).unwrap();
        let text = patched(&text(file), &std::fs::read_to_string(&path).unwrap());
        all.insert(file, Arc::new(Module::parse(file, &text).unwrap()));
        let said = ways().map(|(_, o)| match play(case, &all, true, o) {
            Err(e) => e,
            Ok((out, _)) if !same(&out, &want) => "other bits".into(),
            Ok(_) => "-".into(),
        });
        println!("{name} | {}", said.join(" | "));
        assert!(said[2..].iter().all(|s| s != "-"), "{name} is not found: {said:?}");
        // what shows without the checker: eager and lazy
        let shown = [&said[0], &said[1]].map(|s| s != "-");
        match name.split('.').nth(1).unwrap() {
            "one_warp_releases_for_its_group" | "proxy_fence_by_one_thread" => assert_eq!(shown, [false; 2], "{name}"),
            "stage_freed_before_its_product" | "residual_fetched_early" | "one_wait_too_few" => {
                assert_eq!(shown, [false, true], "{name}")
            }
            _ => assert_eq!(shown, [true; 2], "{name}"),
        }
        n += 1;
    }
    assert_eq!(n, 11);
}
