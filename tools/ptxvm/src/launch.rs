//! The interface: a module, arguments, a launch, a report.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use crate::decode::decode;
use crate::error::{Error, Result};
use crate::exec::{Block, Launch};
use crate::finding::{Fault, Finding};
use crate::memory::{DevicePtr, Memory};
use crate::options::{Options, Schedule};
use crate::parse::{Source, parse};
use crate::program::{Inst, Kernel, Slot, Special};
use crate::regs::{File, LANES, Regs};
use crate::stats::Stats;
use crate::types::Space;
use crate::watch::Order;

/// Decoded kernels by seed of perturbation and name.
type Kernels = HashMap<Option<u64>, HashMap<String, Arc<Kernel>>>;

/// Warp instructions that are not worth handing to another thread.
const SMALL: u64 = 4096;

/// A PTX file, parsed. Kernels are decoded when they are first launched.
pub struct Module {
    id: u64,
    source: Source,
    kernels: Mutex<Kernels>,
}

static MODULES: AtomicU64 = AtomicU64::new(0);

/// An argument of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub enum Arg {
    /// A device address.
    Ptr(DevicePtr),
    /// 32 bits, unsigned.
    U32(u32),
    /// 32 bits, signed.
    S32(i32),
    /// 64 bits.
    U64(u64),
    /// A float.
    F32(f32),
    /// A tensor map, as [`Memory::tensor_map`] encodes it.
    Map([u64; 16]),
    /// A struct by value.
    Bytes(Vec<u8>),
}

impl Arg {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Arg::Ptr(v) | Arg::U64(v) => v.to_le_bytes().into(),
            Arg::U32(v) => v.to_le_bytes().into(),
            Arg::S32(v) => v.to_le_bytes().into(),
            Arg::F32(v) => v.to_le_bytes().into(),
            Arg::Map(w) => w.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Arg::Bytes(b) => b.clone(),
        }
    }
}

/// What to launch, and how large.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// What a launch did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The first finding of each block that has one, by block. Blocks after the first of them may not have run.
    pub findings: Vec<Finding>,
    /// Counts over all blocks that ran.
    pub stats: Stats,
}

impl Module {
    /// Parses PTX; `file` is its name in messages.
    pub fn parse(file: &str, text: &str) -> Result<Module> {
        let id = MODULES.fetch_add(1, Relaxed);
        Ok(Module { id, source: parse(file, text)?, kernels: Mutex::default() })
    }

    /// Names of the kernels, in order.
    pub fn entries(&self) -> Vec<&str> {
        self.source.functions.iter().filter(|f| f.entry).map(|f| f.name.as_str()).collect()
    }

    /// The architecture it was compiled for, such as `sm_80`.
    pub fn target(&self) -> &str {
        &self.source.target
    }

    /// Parameters of a kernel, in order.
    pub fn params(&self, entry: &str) -> Result<Vec<Slot>> {
        Ok(self.kernel(entry, None)?.params.clone())
    }

    /// Decodes every kernel: whatever is not supported is refused now.
    pub fn check(&self) -> Result<()> {
        self.entries().iter().try_for_each(|e| self.kernel(e, None).map(|_| ()))
    }

    fn kernel(&self, entry: &str, perturb: Option<u64>) -> Result<Arc<Kernel>> {
        let mut all = self.kernels.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let all = all.entry(perturb).or_default();
        if let Some(k) = all.get(entry) {
            return Ok(k.clone());
        }
        let f = self.source.functions.iter().find(|f| f.entry && f.name == entry).ok_or_else(|| {
            Error::Launch(format!(
                "{}: no kernel `{entry}`, there are: {}",
                self.source.file,
                self.entries().join(", ")
            ))
        })?;
        let k = Arc::new(decode(&self.source, f, perturb)?);
        all.insert(entry.to_string(), k.clone());
        Ok(k)
    }

    /// Shared memory that a block may have on the target (CUDA programming guide, compute capabilities).
    fn shared_limit(&self) -> u32 {
        match self.source.target.trim_start_matches("sm_").trim_end_matches('a') {
            "80" | "87" => 163 << 10,
            "86" | "89" => 99 << 10,
            "90" => 227 << 10,
            _ => 48 << 10,
        }
    }

    /// Variables of the module, made when they are first needed and kept with the memory.
    fn variables(&self, memory: &mut Memory) -> Result<()> {
        if memory.variables.contains_key(&self.id) {
            return Ok(());
        }
        let mut all = Vec::new();
        for v in &self.source.variables {
            all.push(match v.space {
                Space::Global | Space::Const => {
                    let mut bytes = v.init.clone().unwrap_or_default();
                    bytes.resize(v.size as usize, 0);
                    memory.alloc_from(&bytes)?
                }
                _ => 0,
            });
        }
        for (v, &to) in self.source.variables.iter().zip(&all) {
            for (at, name) in &v.addresses {
                let n = self.source.variables.iter().position(|v| v.name == *name);
                let p = n.map(|n| all[n]).filter(|&p| p != 0);
                let p =
                    p.ok_or_else(|| Error::Launch(format!("`{}`: `{name}` is no variable of the module", v.name)))?;
                memory.write(to + *at as u64, &p.to_le_bytes())?;
            }
        }
        memory.variables.insert(self.id, all);
        Ok(())
    }

    /// Runs a kernel over all blocks. A launch that a driver would refuse is an error; what a kernel does wrong is a
    /// finding.
    pub fn launch(
        &self,
        memory: &mut Memory,
        entry: &str,
        config: &Config,
        args: &[Arg],
        options: &Options,
    ) -> Result<Report> {
        let kernel = self.kernel(entry, options.perturb)?;
        let params = self.arguments(&kernel, args)?;
        let regions = self.fits(&kernel, config)?;
        self.variables(memory)?;
        memory.begin_launch();
        let dynamic = regions.last().map_or(0, |r| r.0);
        let launch = Launch {
            kernel: &kernel,
            memory,
            options,
            grid: config.grid,
            block: config.block,
            params,
            regs: registers(&kernel, config, &memory.variables[&self.id], dynamic),
            regions,
            order: (options.check && config.grid != [1, 1, 1]).then(Order::default),
        };
        let [x, y, z] = config.grid.map(u64::from);
        let n = x * y * z;
        // the lowest block with a finding: those above need not start
        let stop = AtomicU64::new(u64::MAX);
        // what ran so far, and what one block more adds to it
        type Done = (Stats, Vec<(u64, Finding)>);
        let run = |mut done: Done, b: u64| -> Done {
            if b > stop.load(Relaxed) {
                return done;
            }
            let at = [(b % x) as u32, (b / x % y) as u32, (b / (x * y)) as u32];
            let mut block = Block::new(&launch, at);
            if let Err(f) = block.run() {
                stop.fetch_min(b, Relaxed);
                done.1.push((b, self.finding(&kernel, config, &block, *f)));
            }
            done.0.add(&block.stats);
            block.retire();
            done
        };
        let (stats, mut findings) = match options.schedule {
            // one after the other, so that of two blocks that race each comes first in one of the schedules
            Schedule::Ascending => (0..n).fold(Done::default(), run),
            Schedule::Descending => (0..n).rev().fold(Done::default(), run),
            _ => {
                let first = run(Done::default(), 0);
                if first.0.instructions * (n - 1) < SMALL {
                    (1..n).fold(first, run)
                } else {
                    (1..n)
                        .into_par_iter()
                        .fold(Done::default, run)
                        .reduce_with(|mut a, b| {
                            a.0.add(&b.0);
                            a.1.extend(b.1);
                            a
                        })
                        .map_or_else(Done::default, |mut rest| {
                            rest.0.add(&first.0);
                            rest.1.extend(first.1);
                            rest
                        })
                }
            }
        };
        findings.sort_unstable_by_key(|f| f.0);
        Ok(Report { findings: findings.into_iter().map(|f| f.1).collect(), stats })
    }

    fn arguments(&self, k: &Kernel, args: &[Arg]) -> Result<Vec<u8>> {
        if args.len() != k.params.len() {
            return Err(Error::Launch(format!("{}: {} arguments, expected {}", k.name, args.len(), k.params.len())));
        }
        let mut bytes = vec![0; k.param_bytes as usize];
        for (n, (a, p)) in args.iter().zip(&k.params).enumerate() {
            let b = a.bytes();
            if b.len() != p.size as usize {
                return Err(Error::Launch(format!(
                    "{}: argument {n} has {} bytes, `{}` takes {}",
                    k.name,
                    b.len(),
                    p.name,
                    p.size
                )));
            }
            bytes[p.offset as usize..p.offset as usize + b.len()].copy_from_slice(&b);
        }
        Ok(bytes)
    }

    /// Grid, block and shared memory within what the kernel and its target allow; the shared variables.
    fn fits(&self, k: &Kernel, c: &Config) -> Result<Vec<(u32, u32)>> {
        let bad = |m: String| Err(Error::Launch(format!("{}: {m}", k.name)));
        let threads = c.block.iter().try_fold(1u32, |n, &b| n.checked_mul(b)).unwrap_or(0);
        if threads == 0 || threads > 1024 || c.block[2] > 64 {
            return bad(format!("a block of {:?} threads, expected 1 to 1,024", c.block));
        }
        if threads > k.max_threads {
            return bad(format!("a block of {threads} threads, it was compiled for {}", k.max_threads));
        }
        if k.threads.is_some_and(|t| t != c.block) {
            return bad(format!("a block of {:?} threads, it requires {:?}", c.block, k.threads.unwrap_or_default()));
        }
        if c.grid.contains(&0) || c.grid[0] > i32::MAX as u32 || c.grid[1] > 65535 || c.grid[2] > 65535 {
            return bad(format!("a grid of {:?} blocks", c.grid));
        }
        let top = k.statics.last().map_or(0, |s| s.1);
        let used = k.statics.iter().map(|s| s.1 - s.0).sum::<u32>();
        if u64::from(used) + u64::from(c.shared) > u64::from(self.shared_limit()) {
            return bad(format!(
                "{used} + {} bytes of shared memory, {} has {}",
                c.shared,
                self.source.target,
                self.shared_limit()
            ));
        }
        let mut regions = k.statics.clone();
        // no better aligned than declared: kernels that need more must align for themselves
        let at = top.next_multiple_of(1024) + k.dynamic_align.min(1024);
        regions.push((at, at + c.shared));
        Ok(regions)
    }

    fn finding(&self, k: &Kernel, c: &Config, block: &Block, f: Fault) -> Finding {
        let (warp, pc, mask) = block.place;
        let inst: Option<&Inst> = k.code.get(pc as usize).or(k.code.last());
        let lane = f.lane.unwrap_or(mask.trailing_zeros() as usize) as u32;
        let threads = c.block.iter().product::<u32>();
        let source = inst.filter(|i| i.place.0 > 0).map(|i| {
            let file = self.source.files.iter().find(|f| f.0 == u64::from(i.place.0)).map(|f| f.1.clone());
            (file.unwrap_or_default(), i.place.1)
        });
        Finding {
            kind: f.kind,
            file: self.source.file.clone(),
            kernel: k.name.clone(),
            line: inst.map_or(0, |i| i.line),
            instruction: inst.map_or_else(String::new, |i| i.name.to_string()),
            source,
            block: block.at,
            thread: (warp as u32 * 32 + lane).min(threads.saturating_sub(1)),
            address: f.address,
            message: f.message,
        }
    }
}

/// The rows that are the same in every warp of a launch.
fn registers(k: &Kernel, c: &Config, variables: &[u64], dynamic: u32) -> Regs {
    let mut r = Regs {
        word: vec![[0; LANES]; k.rows[0]],
        wide: vec![[0; LANES]; k.rows[1]],
        flag: vec![0; k.rows[2]],
        known: k.rows.map(|n| vec![0; n]),
    };
    let mut fill = |reg: crate::regs::Reg, v: u64| {
        match reg.file {
            File::Flag => r.flag[reg.row as usize] = if v == 0 { 0 } else { u32::MAX },
            File::Word => r.word[reg.row as usize] = [v as u32; LANES],
            File::Wide => r.wide[reg.row as usize] = [v; LANES],
        }
        r.learn(reg, u32::MAX);
    };
    for &(reg, bits) in &k.constants {
        fill(reg, bits);
    }
    for &(reg, s) in &k.specials {
        let v = match s {
            Special::Ntid(a) => c.block[a as usize].into(),
            Special::Nctaid(a) => c.grid[a as usize].into(),
            Special::Warps => u64::from(c.block.iter().product::<u32>().div_ceil(32)),
            Special::Fixed(n) => n.into(),
            Special::Dynamic => dynamic.into(),
            Special::Variable(n) => variables.get(n as usize).copied().unwrap_or(0),
            _ => 0,
        };
        fill(reg, v);
    }
    r
}
