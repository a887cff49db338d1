//! How things are timed, and where results go.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use engine::device::gpu::{Facts, Gpu, Products};
use engine::device::philox::{Key, Purpose};
use engine::device::{DType, Device, Tensor};
use engine::ops::affine::{self, Affine};
use engine::ops::{copy, noise};
use serde_json::{Value, json};
use std::sync::Arc;

/// Runs that a median is of, if they fit into the time for one case.
const RUNS: usize = 50;
/// Seconds for one case.
const MOST: f64 = 8.0;
/// What a run takes at least: many calls in one graph where a call is short.
const RUN: f64 = 300e-6;
/// Runs before the timed ones: the first is done launch by launch, the second recorded.
const WARM: usize = 3;
/// No more calls than this are one graph.
const CALLS: usize = 64;

/// Results, a line of JSON each; checks are also printed.
pub struct Log {
    file: Option<File>,
    pub failures: usize,
}

impl Log {
    /// Adds to a file.
    pub fn to(path: Option<&Path>) -> Result<Self> {
        let open = |p| File::options().create(true).append(true).open(p);
        Ok(Self { file: path.map(open).transpose()?, failures: 0 })
    }

    pub fn line(&mut self, value: &Value) -> Result<()> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{value}")?;
        }
        Ok(())
    }

    /// The outcome of a check that began at `start`.
    pub fn check(&mut self, name: &str, ok: bool, start: Instant, detail: &str) -> Result<()> {
        self.failures += usize::from(!ok);
        let (status, seconds) = (if ok { "ok" } else { "FAILED" }, start.elapsed().as_secs_f64());
        println!("{status:8}{name} ({seconds:.1} s) {detail}");
        self.line(&json!({"kind": "check", "name": name, "status": status, "seconds": seconds, "detail": detail}))
    }
}

/// What a call does at least.
#[derive(Clone, Copy, Default)]
pub struct Work {
    /// Floating-point operations of products.
    pub flop: f64,
    /// Bytes that must be read and written once.
    pub bytes: f64,
}

/// What a chip can do at most, by its maker: operations on bf16 per second, bytes per second.
fn peak(facts: &Facts) -> Option<(f64, f64)> {
    let known =
        [("H200", 989e12, 4.8e12), ("H100 PCIe", 756e12, 2.0e12), ("H100", 989e12, 3.35e12), ("A100", 312e12, 2.04e12)];
    let found = known.iter().find(|(name, ..)| facts.name.contains(name));
    found.map(|(_, flop, bytes)| (*flop, *bytes))
}

impl Work {
    /// The least time that it can take.
    fn floor(self, facts: &Facts) -> Option<f64> {
        peak(facts).map(|(flop, bytes)| (self.flop / flop).max(self.bytes / bytes))
    }
}

/// One of several ways to do the same, of the inputs of a number.
pub struct Variant<'a> {
    pub name: String,
    pub run: Box<dyn FnMut(usize) + 'a>,
}

impl<'a> Variant<'a> {
    pub fn new(name: impl Into<String>, run: impl FnMut(usize) + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// The timing of one op on a device of its own.
pub struct Session<'a> {
    pub device: Device,
    pub gpu: Arc<Gpu>,
    pub small: bool,
    op: &'a str,
    seed: u64,
    end: Instant,
    log: &'a mut Log,
    drawn: u32,
}

impl<'a> Session<'a> {
    pub fn new(device: Device, op: &'a str, small: bool, seed: u64, end: Instant, log: &'a mut Log) -> Self {
        let Device::Gpu(gpu) = &device else { panic!("{device:?} is no GPU") };
        Self { gpu: gpu.clone(), device, small, op, seed, end, log, drawn: 0 }
    }

    /// Normal numbers of standard deviation `std`, others each time; in bf16, or in f32 if they are a vector.
    pub fn normal(&mut self, shape: &[usize], std: f32) -> Tensor {
        let x = self.single(shape, std);
        if shape.len() == 1 { x } else { copy::cast(&x, DType::Bf16) }
    }

    /// As [`Session::normal`], in f32.
    pub fn single(&mut self, shape: &[usize], std: f32) -> Tensor {
        self.drawn += 1;
        let key = Key { prompt: self.drawn, ..Key::new(self.seed, Purpose::ForwardNoise) };
        let x = noise::normal(&self.device, &[key], &[1, shape.iter().product()]).reshape(shape);
        if std == 1.0 { x } else { affine::forward(&x, Affine { scale: std, ..Affine::default() }) }
    }

    /// A weight `[out, in]` that keeps the size of what goes through it.
    pub fn weight(&mut self, outputs: usize, inputs: usize) -> Tensor {
        self.normal(&[outputs, inputs], 1.0 / (inputs as f32).sqrt())
    }

    /// Whether there is time for another case; says so if not.
    fn has_time(&mut self, kind: &str, case: &str, who: &str) -> Result<bool> {
        let left = Instant::now() < self.end;
        if !left {
            let (op, detail) = (self.op, "no time was left");
            self.log.line(&json!({"kind": kind, "op": op, "case": case, "who": who, "skipped": detail}))?;
        }
        Ok(left)
    }

    fn runs(&self, seconds: f64) -> usize {
        if self.small { 2 } else { ((MOST / seconds.max(1e-9)) as usize).clamp(5, RUNS) }
    }

    /// Times `f` of the inputs 0 to `sets`, in turn, as part of graphs.
    pub fn repeat(&mut self, case: &str, work: Work, sets: usize, f: impl FnMut(usize)) -> Result<()> {
        self.repeat_as("bench", case, "engine", work, sets, f)
    }

    /// As [`Session::repeat`], and once more with products by cuBLASLt, if it is here.
    pub fn both(&mut self, case: &str, work: Work, sets: usize, mut f: impl FnMut(usize)) -> Result<()> {
        self.repeat(case, work, sets, &mut f)?;
        self.by(Products::Cublaslt, case, "op by cublaslt", work, sets, f)
    }

    /// As [`Session::repeat`], under another name and by other products, if they are here.
    pub fn by(
        &mut self,
        products: Products,
        case: &str,
        who: &str,
        work: Work,
        sets: usize,
        f: impl FnMut(usize),
    ) -> Result<()> {
        let before = self.gpu.products();
        if self.gpu.choose(products).is_err() {
            return Ok(());
        }
        let done = self.repeat_as("bench", case, who, work, sets, f);
        self.gpu.choose(before).and(done)
    }

    /// Times different ways to do the same, as [`Session::repeat`] does: that which the engine takes comes first.
    pub fn rank(&mut self, case: &str, work: Work, sets: usize, ways: Vec<Variant>) -> Result<()> {
        ways.into_iter().try_for_each(|mut v| self.repeat_as("variant", case, &v.name, work, sets, &mut v.run))
    }

    fn repeat_as(
        &mut self,
        kind: &str,
        case: &str,
        who: &str,
        work: Work,
        sets: usize,
        mut f: impl FnMut(usize),
    ) -> Result<()> {
        if !self.has_time(kind, case, who)? {
            return Ok(());
        }
        let gpu = self.gpu.clone();
        let single = gpu.time(2, &mut f)?[1];
        let calls = if self.small { sets } else { ((RUN / single) as usize).clamp(1, CALLS).next_multiple_of(sets) };
        let mut run = |_| gpu.region(|| (0..calls).for_each(|i| f(i % sets)));
        let warm = gpu.time(WARM, &mut run)?[WARM - 1];
        let seconds = gpu.time(self.runs(warm), run)?;
        self.keep(kind, case, who, work, calls, seconds)
    }

    /// Times `f` as it comes: what waits for results, or cannot be recorded.
    pub fn direct(&mut self, case: &str, who: &str, work: Work, mut f: impl FnMut(usize)) -> Result<()> {
        if !self.has_time("bench", case, who)? {
            return Ok(());
        }
        let warm = self.gpu.time(WARM, &mut f)?[WARM - 1];
        let seconds = self.gpu.time(self.runs(warm), f)?;
        self.keep("bench", case, who, work, 1, seconds)
    }

    /// Times `f` in place on a fresh one of `make` of `bytes` each time, so that repetition does not change the numbers.
    pub fn fresh<T>(
        &mut self,
        case: &str,
        work: Work,
        bytes: usize,
        mut make: impl FnMut(&mut Self) -> T,
        mut f: impl FnMut(&mut T),
    ) -> Result<()> {
        if !self.has_time("bench", case, "engine")? {
            return Ok(());
        }
        let room = self.gpu.free_memory()? as usize / 2 / bytes.max(1);
        let runs = if self.small { 2 } else { room.clamp(WARM + 2, WARM + RUNS) };
        let mut all: Vec<T> = (0..runs).map(|_| make(self)).collect();
        self.gpu.check()?;
        let seconds = self.gpu.time(runs, |i| f(&mut all[i]))?;
        let warm = if self.small { 0 } else { WARM };
        self.keep("bench", case, "engine", work, 1, seconds[warm..].to_vec())
    }

    fn keep(
        &mut self,
        kind: &str,
        case: &str,
        who: &str,
        work: Work,
        calls: usize,
        mut seconds: Vec<f64>,
    ) -> Result<()> {
        seconds.sort_by(f64::total_cmp);
        let per_call: Vec<f64> = seconds.iter().map(|s| s / calls as f64).collect();
        let (median, least) = (per_call[per_call.len() / 2], per_call[0]);
        let mut line = json!({
            "kind": kind, "op": self.op, "case": case, "who": who, "flop": work.flop, "bytes": work.bytes,
            "runs": per_call.len(), "calls": calls, "seed": self.seed,
        });
        // Interpreted kernels say nothing about a GPU's time.
        if self.gpu.stream().is_some() {
            line["seconds"] = json!(median);
            line["least"] = json!(least);
            line["floor"] = json!(work.floor(self.gpu.facts()));
        }
        self.log.line(&line)
    }
}
