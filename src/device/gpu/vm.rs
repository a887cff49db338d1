//! The device that runs the shipped PTX on the processor: `--device vm`. What a GPU would do without a word, such as
//! reading what nobody wrote or racing for shared memory, fails here with a name and a line.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use ptxvm::{Config, Memory, Module, Options};

use super::driver::{Arg, DevicePtr, Driver, Facts, Function, Graph, Launch, Op, TensorMap, TensorMapDesc};

/// An interpreted GPU.
pub struct Vm {
    facts: Facts,
    options: Options,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    memory: Memory,
    modules: Vec<(&'static str, Module)>,
    /// Which module and entry each function is.
    functions: Vec<(usize, String)>,
    known: HashMap<(&'static str, String), Function>,
    graphs: Vec<Vec<Op>>,
    marks: HashMap<usize, Instant>,
}

impl Vm {
    /// A device of compute capability `capability` that does things in the order of `options`.
    pub fn new(capability: (u32, u32), options: Options) -> Self {
        let memory = crate::device::machine_memory().map_or(1 << 32, |m| m.total);
        let name = "ptxvm".to_string();
        // As many as a small GPU has: more than one, so that what depends on it is met.
        Self { facts: Facts { name, capability, processors: 4, memory }, options, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn launch(&mut self, launch: &Launch, options: &Options) -> Result<()> {
        let (module, entry) = &self.functions[launch.function.0 as usize];
        let config = Config { grid: launch.grid, block: launch.block, shared: launch.shared };
        let args: Vec<ptxvm::Arg> = launch.args.iter().map(arg).collect();
        let report = self.modules[*module].1.launch(&mut self.memory, entry, &config, &args, options)?;
        match report.findings.first() {
            Some(finding) => Err(anyhow!("{finding}")),
            None => Ok(()),
        }
    }

    fn run(&mut self, op: &Op, options: &Options) -> Result<()> {
        match op {
            Op::Launch(launch) => self.launch(launch, options),
            Op::Copy { to, from, bytes } => {
                let bytes = self.memory.bytes(*from, *bytes as u64)?;
                Ok(self.memory.write(*to, &bytes)?)
            }
            Op::Forget { at, bytes } => Ok(self.memory.forget(*at, *bytes as u64)?),
            Op::Fill { to, bytes, byte } => Ok(self.memory.write(*to, &vec![*byte; *bytes])?),
        }
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
        Ok(crate::device::machine_memory().map_or(self.facts.memory, |m| m.available))
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        Ok(self.state().memory.alloc(bytes as u64)?)
    }

    fn free(&self, ptr: DevicePtr) {
        // What is not there need not be given back.
        let _ = self.state().memory.free(ptr);
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
        let module = match state.modules.iter().position(|(name, _)| *name == file) {
            Some(at) => at,
            None => {
                state.modules.push((file, Module::parse(file, ptx)?));
                state.modules.len() - 1
            }
        };
        let names = state.modules[module].1.entries();
        if !names.contains(&entry) {
            bail!("{file} has no entry {entry}; it has {}", names.join(", "));
        }
        let function = Function(state.functions.len() as u32);
        state.functions.push((module, entry.to_string()));
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
        self.state().run(op, &self.options)
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
        ops.iter().try_for_each(|op| state.run(op, &self.options))
    }
}
