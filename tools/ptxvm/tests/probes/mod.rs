//! The probe kernels (GEMMs, attention forward and backward, linear with LoRA, convolution, sampler step), compiled with
//! NVRTC 12.4: each against a reference in f64, with the same bits under every schedule.

pub mod cases;
pub mod data;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ptxvm::{Arg, Config, Memory, Module, Options, Schedule, Stats};

/// The files of a case, by stem.
pub type Modules = HashMap<&'static str, Arc<Module>>;

/// Text of a fixture.
pub fn text(stem: &str) -> String {
    let path = format!("{}/tests/ptx/{stem}.ptx", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Parsed fixtures.
pub fn modules(stems: &[&'static str]) -> Modules {
    stems.iter().map(|&s| (s, Arc::new(Module::parse(&format!("{s}.ptx"), &text(s)).unwrap()))).collect()
}

/// Something a kernel computed: its bytes, and how far from the reference.
pub struct Outcome {
    pub label: String,
    pub bytes: Vec<u8>,
    pub error: f64,
    pub bound: f64,
}

/// Runs launches of a case one way.
pub struct Bench<'a> {
    pub modules: &'a Modules,
    pub options: Options,
    pub stats: Stats,
    /// Time in launches.
    pub time: Duration,
}

impl Bench<'_> {
    /// One launch; the first finding as an error.
    pub fn run(
        &mut self,
        file: &str,
        kernel: &str,
        args: &[Arg],
        m: &mut Memory,
        grid: [u32; 3],
        block: u32,
    ) -> Result<(), String> {
        let shared = match file {
            "step.sm_80" => 0,
            f if f.ends_with("sm_80") => 160 << 10,
            _ => 227 << 10,
        };
        let config = Config { grid, block: [block, 1, 1], shared };
        let start = Instant::now();
        let r = self.modules[file].launch(m, kernel, &config, args, &self.options).map_err(|e| e.to_string())?;
        self.time += start.elapsed();
        self.stats.add(&r.stats);
        r.findings.first().map_or(Ok(()), |f| Err(f.to_string()))
    }
}

/// Runs a case one way.
pub fn play(
    case: &cases::Case,
    modules: &Modules,
    small: bool,
    options: Options,
) -> Result<(Vec<Outcome>, Stats), String> {
    let (out, stats, _) = timed(case, modules, small, options)?;
    Ok((out, stats))
}

/// The same, and the time in launches.
fn timed(
    case: &cases::Case,
    modules: &Modules,
    small: bool,
    options: Options,
) -> Result<(Vec<Outcome>, Stats, Duration), String> {
    let mut b = Bench { modules, options, stats: Stats::default(), time: Duration::ZERO };
    let out = (case.run)(&mut b, small)?;
    Ok((out, b.stats, b.time))
}

/// What a change of a kernel or of the interpreter costs is seen: counts of every case are those of `counts.txt`.
#[test]
fn counts_are_those_committed() {
    let path = format!("{}/tests/counts.txt", env!("CARGO_MANIFEST_DIR"));
    let mut now = String::new();
    for case in cases::CASES {
        let (_, stats) = play(case, &modules(case.files), false, Options::default()).unwrap();
        let list: Vec<String> = stats.list().iter().map(|(n, v)| format!("{n} {v}")).collect();
        now.push_str(&format!("{}: {}\n", case.name, list.join(", ")));
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(known == now, "counts have changed; if that is meant, {path} becomes:\n{now}");
}

fn check(name: &str) {
    let case = cases::CASES.iter().find(|c| c.name == name).unwrap();
    let m = modules(case.files);
    let schedules = [
        Schedule::Eager,
        Schedule::Lazy,
        Schedule::Ascending,
        Schedule::Descending,
        Schedule::Random(1),
        Schedule::Random(2),
    ];
    let mut first: Option<Vec<Outcome>> = None;
    for schedule in schedules {
        let (out, stats, time) = timed(case, &m, false, Options { schedule, ..Options::default() })
            .unwrap_or_else(|e| panic!("{name} {schedule}: {e}"));
        println!("{name} {schedule}: {} instructions in {:.3} s", stats.instructions, time.as_secs_f64());
        for o in &out {
            println!("    {}: {:.2e} of {:.0e}", o.label, o.error, o.bound);
            assert!(o.error <= o.bound, "{name} {schedule} {}: {:.2e}, at most {:.0e}", o.label, o.error, o.bound);
        }
        if let Some(first) = &first {
            for (a, b) in first.iter().zip(&out) {
                assert!(a.bytes == b.bytes, "{name} {}: {schedule} gives other bits than eager", a.label);
            }
        }
        first.get_or_insert(out);
    }
}

macro_rules! probes {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            check(stringify!($name));
        }
    )*};
}

probes! { gemm_wgmma gemm_mma attn_fwd attn_bwd layouts linear attn_dims attn_mma conv noise step }

/// Every case leans on approximate instructions only as far as its bound allows.
#[test]
fn results_stay_within_bounds_when_approximations_are_perturbed() {
    for name in ["attn_mma", "attn_fwd"] {
        let case = cases::CASES.iter().find(|c| c.name == name).unwrap();
        let (out, _) =
            play(case, &modules(case.files), true, Options { perturb: Some(7), ..Options::default() }).unwrap();
        assert!(out.iter().all(|o| o.error <= o.bound), "{name}");
    }
}
