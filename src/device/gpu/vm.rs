//! The device that runs the shipped PTX on the processor: `--device vm`. What a GPU would do without a word, such as
//! reading what nobody wrote or racing for shared memory, fails here with a name and a line.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use ptxvm::{Config, Memory, Module, Options, Stats};

use super::driver::{Arg, DevicePtr, Driver, Facts, Function, Graph, Launch, Op, Product, TensorMap, TensorMapDesc};
use crate::device::DType;

/// An interpreted GPU.
pub struct Vm {
    facts: Facts,
    options: Options,
    counts: Counts,
    state: Mutex<State>,
}

/// What all launches of each entry took together.
pub type Counts = Arc<Mutex<BTreeMap<String, Stats>>>;

#[derive(Default)]
struct State {
    memory: Memory,
    /// Which module and entry each function is.
    functions: Vec<(Arc<Module>, String)>,
    known: HashMap<(&'static str, String), Function>,
    graphs: Vec<Vec<Op>>,
    /// Bytes of everything that was allocated and not given back.
    held: HashMap<DevicePtr, u64>,
    marks: HashMap<usize, Instant>,
}

/// The files that were parsed so far, by name and place of the text: a process has many devices and few files.
static PARSED: Mutex<BTreeMap<(&str, usize), Arc<Module>>> = Mutex::new(BTreeMap::new());

fn parsed(file: &'static str, ptx: &'static str) -> Result<Arc<Module>> {
    let parsed = &mut *lock(&PARSED);
    let key = (file, ptx.as_ptr() as usize);
    if let Some(module) = parsed.get(&key) {
        return Ok(module.clone());
    }
    let module = Arc::new(Module::parse(file, ptx)?);
    parsed.insert(key, module.clone());
    Ok(module)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vm {
    /// A device of compute capability `capability` that does things in the order of `options`.
    pub fn new(capability: (u32, u32), options: Options) -> Self {
        Self::with_memory(capability, options, crate::device::machine_memory().map_or(1 << 32, |m| m.total))
    }

    /// As [`Vm::new`], with so many bytes of memory.
    pub fn with_memory(capability: (u32, u32), options: Options, memory: u64) -> Self {
        let name = "ptxvm".to_string();
        // As many as a small GPU has: more than one, so that what depends on it is met.
        let facts = Facts { name, capability, processors: 4, memory };
        Self { facts, options, counts: Counts::default(), state: Mutex::default() }
    }

    /// Runs another text of one entry of a file: for tests of tests.
    pub fn with_kernel(self, file: &'static str, entry: &str, module: Arc<Module>) -> Self {
        let mut state = self.state();
        let function = state.add(module, entry);
        state.known.insert((file, entry.to_string()), function);
        drop(state);
        self
    }

    /// What launches take, from now on.
    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn add(&mut self, module: Arc<Module>, entry: &str) -> Function {
        self.functions.push((module, entry.to_string()));
        Function(self.functions.len() as u32 - 1)
    }

    fn launch(&mut self, launch: &Launch, options: &Options, counts: &Counts) -> Result<()> {
        let (module, entry) = &self.functions[launch.function.0 as usize];
        let config = Config { grid: launch.grid, block: launch.block, shared: launch.shared };
        let args: Vec<ptxvm::Arg> = launch.args.iter().map(arg).collect();
        let report = module.launch(&mut self.memory, entry, &config, &args, options)?;
        lock(counts).entry(entry.clone()).or_default().add(&report.stats);
        match report.findings.first() {
            Some(finding) => Err(anyhow!("{finding}")),
            None => Ok(()),
        }
    }

    /// One chain for every element, in the order of the depth.
    fn product(&self, p: &Product) -> Result<()> {
        let line = |at: DevicePtr, i: u32, ld: u32, length: u32, dtype: DType| {
            let from = at + dtype.bytes(i as usize * ld as usize) as u64;
            Ok::<_, anyhow::Error>(numbers(&self.memory.bytes(from, dtype.bytes(length as usize) as u64)?, dtype))
        };
        let (lines, length) = if p.along { (p.n, p.k) } else { (p.k, p.n) };
        let w = (0..lines).map(|i| line(p.w, i, p.ldw, length, p.dtype)).collect::<Result<Vec<_>>>()?;
        for i in 0..p.m {
            let x = line(p.x, i, p.ldx, p.k, p.dtype)?;
            let before = if p.adds { line(p.y, i, p.ldy, p.n, p.out)? } else { vec![0.0; p.n as usize] };
            let mut y = Vec::new();
            for (j, before) in before.into_iter().enumerate() {
                let of = |k: usize| if p.along { w[j][k] } else { w[k][j] };
                let sum = before + x.iter().enumerate().fold(0.0, |sum, (k, x)| sum + x * of(k));
                match p.out {
                    DType::F32 => y.extend(sum.to_le_bytes()),
                    DType::F16 => y.extend(half::f16::from_f32(sum).to_le_bytes()),
                    _ => y.extend(half::bf16::from_f32(sum).to_le_bytes()),
                }
            }
            self.memory.write(p.y + p.out.bytes(i as usize * p.ldy as usize) as u64, &y)?;
        }
        Ok(())
    }

    fn run(&mut self, op: &Op, options: &Options, counts: &Counts) -> Result<()> {
        match op {
            Op::Launch(launch) => self.launch(launch, options, counts),
            Op::Product(product) => self.product(product),
            Op::Copy { to, from, bytes } => {
                let bytes = self.memory.bytes(*from, *bytes as u64)?;
                Ok(self.memory.write(*to, &bytes)?)
            }
            Op::Forget { at, bytes } => Ok(self.memory.forget(*at, *bytes as u64)?),
            Op::Fill { to, bytes, byte } => Ok(self.memory.write(*to, &vec![*byte; *bytes])?),
        }
    }
}

fn numbers(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let halves = bytes.as_chunks::<2>().0.iter();
    match dtype {
        DType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::F16 => halves.map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        _ => halves.map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
    }
}

fn arg(arg: &Arg) -> ptxvm::Arg {
    match arg {
        Arg::Ptr(v) => ptxvm::Arg::Ptr(*v),
        Arg::U32(v) => ptxvm::Arg::U32(*v),
        Arg::I32(v) => ptxvm::Arg::S32(*v),
        Arg::U64(v) => ptxvm::Arg::U64(*v),
        Arg::F32(v) => ptxvm::Arg::F32(*v),
        Arg::Map(map) => ptxvm::Arg::Map(map.0),
        Arg::Bytes(bytes) => ptxvm::Arg::Bytes(bytes.to_vec()),
    }
}

impl Driver for Vm {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_memory(&self) -> Result<u64> {
        let free = self.facts.memory - self.state().held.values().sum::<u64>();
        Ok(crate::device::machine_memory().map_or(free, |m| m.available.min(free)))
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        let state = &mut *self.state();
        let free = self.facts.memory - state.held.values().sum::<u64>();
        if bytes as u64 > free {
            let [size, free, all] = [bytes as u64, free, self.facts.memory].map(crate::device::bytes);
            bail!("{size} were asked for, {free} of {all} are free");
        }
        let ptr = state.memory.alloc(bytes as u64)?;
        state.held.insert(ptr, bytes as u64);
        Ok(ptr)
    }

    fn free(&self, ptr: DevicePtr) {
        let state = &mut *self.state();
        // What is not there need not be given back.
        let _ = state.memory.free(ptr);
        state.held.remove(&ptr);
    }

    fn write(&self, to: DevicePtr, data: &[u8]) -> Result<()> {
        Ok(self.state().memory.write(to, data)?)
    }

    fn read(&self, from: DevicePtr, out: &mut [u8]) -> Result<()> {
        Ok(self.state().memory.read(from, out)?)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn function(&self, file: &'static str, ptx: &'static str, entry: &str, _shared: u32) -> Result<Function> {
        let state = &mut *self.state();
        if let Some(known) = state.known.get(&(file, entry.to_string())) {
            return Ok(*known);
        }
        let module = parsed(file, ptx)?;
        let names = module.entries();
        if !names.contains(&entry) {
            bail!("{file} has no entry {entry}; it has {}", names.join(", "));
        }
        let function = state.add(module, entry);
        state.known.insert((file, entry.to_string()), function);
        Ok(function)
    }

    fn tensor_map(&self, desc: &TensorMapDesc) -> Result<TensorMap> {
        let map = ptxvm::TensorMap {
            elem: desc.dtype.bytes(1) as u32,
            kind: None,
            base: desc.base,
            dims: desc.dims.clone(),
            strides: desc.strides.clone(),
            tile: desc.tile.clone(),
            steps: desc.steps.clone(),
            swizzle: desc.swizzle.bytes(),
        };
        Ok(TensorMap(self.state().memory.tensor_map(map)?))
    }

    fn submit(&self, op: &Op) -> Result<()> {
        self.state().run(op, &self.options, &self.counts)
    }

    fn capture(&self, ops: &[Op]) -> Result<Graph> {
        let state = &mut *self.state();
        state.graphs.push(ops.to_vec());
        Ok(Graph(state.graphs.len() as u32 - 1))
    }

    fn mark(&self, mark: usize) -> Result<()> {
        self.state().marks.insert(mark, Instant::now());
        Ok(())
    }

    fn between(&self, from: usize, to: usize) -> Result<f64> {
        let marks = &self.state().marks;
        let at = |mark: usize| marks.get(&mark).with_context(|| format!("no mark {mark}"));
        Ok(at(to)?.duration_since(*at(from)?).as_secs_f64())
    }

    fn replay(&self, graph: Graph) -> Result<()> {
        let state = &mut *self.state();
        let ops = state.graphs.get(graph.0 as usize).context("a graph that was not captured here")?.clone();
        ops.iter().try_for_each(|op| state.run(op, &self.options, &self.counts))
    }

    fn discard(&self, graph: Graph) {
        // Its number is not given again.
        self.state().graphs.get_mut(graph.0 as usize).into_iter().for_each(Vec::clear);
    }
}
