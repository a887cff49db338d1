use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use ptxvm::{Module, Mutant, Options, Schedule};

use super::*;
use crate::device::gpu::{self, File, HOPPER, PORTABLE};

const SCHEDULES: [Schedule; 4] = [Schedule::Eager, Schedule::Lazy, Schedule::Descending, Schedule::Random(1)];

fn vm(capability: (u32, u32), schedule: Schedule) -> Vm {
    // Far more than any block here takes.
    Vm::new(capability, Options { schedule, limit: 1 << 20, ..Options::default() })
}

/// `f` of all items, on as many threads as there are processors. Not those of rayon, which launches use.
fn side_by_side<'a, T: Sync, R: Send>(items: &'a [T], f: impl Fn(&'a T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((i, item)) = Some(next.fetch_add(1, Relaxed)).and_then(|i| Some((i, items.get(i)?))) {
            done.push((i, f(item)));
        }
        done
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all: Vec<_> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..threads).map(|_| s.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("a thread without a panic")).collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, r)| r).collect()
}

/// The kernels of a file, each with the header and nothing else: name and text.
fn kernels(text: &str) -> Vec<(&str, String)> {
    let starts: Vec<_> = text.match_indices("\n.visible .entry ").collect();
    let header = &text[..starts.first().map_or(text.len(), |(at, _)| *at)];
    let ends = starts.iter().skip(1).map(|(at, _)| *at).chain([text.len()]);
    let of = |((at, _), end): (&(usize, &str), usize)| {
        let body = &text[*at..end];
        let name = body.split_once(".entry ").map_or("", |(_, rest)| rest.split('(').next().unwrap_or(rest));
        (name, format!("{header}{body}"))
    };
    starts.iter().zip(ends).map(of).collect()
}

/// A kernel with a line less.
struct Wrong {
    file: File,
    /// Kernel and instruction.
    name: String,
    /// Which of the kernel's equal instructions it is, from 1.
    nth: usize,
    mutant: Mutant,
}

fn all_mutants() -> Vec<Wrong> {
    let mut all = Vec::new();
    for file in gpu::files() {
        for (entry, text) in kernels(file.text) {
            let mut seen = BTreeMap::<String, usize>::new();
            for mutant in ptxvm::mutants(&text) {
                assert_eq!(mutant.kernel, entry, "{}", file.path);
                let what = mutant.what.split_whitespace().collect::<Vec<_>>().join(" ");
                let nth = *seen.entry(what.clone()).and_modify(|n| *n += 1).or_insert(1);
                all.push(Wrong { file, name: format!("{entry}: {what}"), nth, mutant });
            }
        }
    }
    all
}

/// Every barrier, fence and wait of our kernels is there for something that a test sees: without it there is a finding, a
/// hang, or other bits, but for those of `survivors.txt`, which says why.
#[test]
fn no_barrier_and_no_wait_can_be_missing_unseen() {
    let exercises = ragged();
    // On the device that a file is for.
    let right = [PORTABLE, HOPPER].map(|capability| {
        let mut right = side_by_side(&exercises, |exercise| {
            let started = Instant::now();
            let vms = SCHEDULES.map(|schedule| vm(capability, schedule));
            let counts = vms[0].counts();
            let runs = vms.map(|vm| exercise.bits(vm).unwrap_or_else(|e| panic!("{}: {e}", exercise.name)));
            let entries: Vec<_> = counts.lock().unwrap().keys().cloned().collect();
            assert!(runs.iter().all(|bits| *bits == runs[0]), "{}: bits depend on the schedule", exercise.name);
            (exercise, runs.into_iter().next().expect("a run"), entries, started.elapsed())
        });
        // What takes least comes first: most of what is missing is seen there.
        right.sort_by_key(|(.., took)| *took);
        right
    });
    let all = all_mutants();
    let found = side_by_side(&all, |Wrong { file, mutant, .. }| {
        let module = Arc::new(Module::parse(file.path, &mutant.text).unwrap());
        let (capability, right) = if file.fits(PORTABLE) { (PORTABLE, &right[0]) } else { (HOPPER, &right[1]) };
        let of_kernel = || right.iter().filter(|(_, _, entries, _)| entries.contains(&mutant.kernel));
        SCHEDULES.into_iter().any(|schedule| {
            of_kernel().any(|(exercise, bits, ..)| {
                let vm = vm(capability, schedule).with_kernel(file.path, &mutant.kernel, module.clone());
                exercise.bits(vm).as_ref() != Ok(bits)
            })
        })
    });
    let mut survivors = BTreeMap::<_, String>::new();
    for (Wrong { name, nth, .. }, _) in all.iter().zip(found).filter(|(_, found)| !found) {
        *survivors.entry(name).or_default() += &format!(" {nth}");
    }
    let now: Vec<_> = survivors.into_iter().map(|(name, which)| format!("{name}{which}")).collect();
    let known: Vec<_> =
        include_str!("survivors.txt").lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
    let new: Vec<_> = now.iter().filter(|line| !known.contains(&line.as_str())).collect();
    let gone: Vec<_> = known.iter().filter(|line| !now.iter().any(|n| n == *line)).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "{} mutants; not in survivors.txt: {new:#?}\nonly in survivors.txt: {gone:#?}",
        all.len()
    );
}
