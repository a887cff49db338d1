//! A GPU that does nothing and takes no memory: what a plan is made on. Launch code, pool and tables are those of the
//! real one, so that the plan counts what they take.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use super::cuda::LEAST;
use super::driver::{DevicePtr, Driver, Facts, Function, Graph, Op, TensorMap, TensorMapDesc};
use super::pool::STEP;

/// Stands for a GPU with these facts.
pub struct Rehearsal {
    facts: Facts,
    /// Where nothing is yet.
    next: AtomicU64,
    /// Memory whose bits were set when it was last used anew; all other reads as zeros.
    set: Mutex<HashSet<DevicePtr>>,
}

impl Rehearsal {
    pub fn new(facts: Facts) -> Self {
        Self { facts, next: AtomicU64::new(1 << 32), set: Mutex::default() }
    }

    fn set(&self) -> MutexGuard<'_, HashSet<DevicePtr>> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for Rehearsal {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_memory(&self) -> Result<u64> {
        Ok(self.facts.memory)
    }

    fn overhead(&self) -> u64 {
        LEAST
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        Ok(self.next.fetch_add(bytes.next_multiple_of(STEP) as u64, Ordering::Relaxed))
    }

    fn free(&self, _: DevicePtr) {}

    fn write(&self, _: DevicePtr, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn read(&self, from: DevicePtr, out: &mut [u8]) -> Result<()> {
        out.fill(if self.set().contains(&from) { u8::MAX } else { 0 });
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn function(&self, _: &'static str, _: &'static str, _: &str, _: u32) -> Result<Function> {
        Ok(Function(0))
    }

    fn tensor_map(&self, _: &TensorMapDesc) -> Result<TensorMap> {
        Ok(TensorMap([0; 16]))
    }

    fn submit(&self, op: &Op) -> Result<()> {
        match op {
            Op::Fill { to, byte: u8::MAX, .. } => drop(self.set().insert(*to)),
            Op::Forget { at, .. } => drop(self.set().remove(at)),
            Op::Launch(_) | Op::Product(_) | Op::Copy { .. } | Op::Fill { .. } => {}
        }
        Ok(())
    }

    fn mark(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn between(&self, _: usize, _: usize) -> Result<f64> {
        Ok(0.0)
    }

    fn capture(&self, _: &[Op]) -> Result<Graph> {
        Ok(Graph(0))
    }

    fn replay(&self, _: Graph) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _: Graph) {}
}
