//! The PTX in this program, and which of it a device runs.

use std::collections::HashMap;

use anyhow::{Result, anyhow, bail};

use super::driver::{Driver, Function};
use super::{HOPPER, PORTABLE};

/// Op, target, path and text of every file of ptx/.
static PTX: &[(&str, &str, &str, &str)] = include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

/// An embedded file.
#[derive(Clone, Copy)]
pub struct File {
    /// The op, such as `adaln`.
    pub op: &'static str,
    /// `sm_80` or `sm_90a`.
    pub target: &'static str,
    /// Where it is in the repository.
    pub path: &'static str,
    /// The PTX.
    pub text: &'static str,
}

/// All files.
pub fn files() -> impl Iterator<Item = File> {
    PTX.iter().map(|&(op, target, path, text)| File { op, target, path, text })
}

impl File {
    /// Dynamic shared memory of each entry that has some, as the source says.
    pub fn shared(self) -> impl Iterator<Item = (&'static str, u32)> {
        let lines = self.text.lines().take_while(|l| l.starts_with("//"));
        lines
            .filter_map(|l| l.strip_prefix("// shared ")?.split_once(' '))
            .filter_map(|(n, b)| Some((n, b.parse().ok()?)))
    }

    /// Its entries.
    pub fn entries(self) -> impl Iterator<Item = &'static str> {
        self.text.split(".entry ").skip(1).filter_map(|after| after.split('(').next())
    }

    /// Whether a chip of this compute capability runs it.
    pub fn fits(self, capability: (u32, u32)) -> bool {
        capability >= PORTABLE && (self.target != "sm_90a" || capability == HOPPER)
    }

    fn has(self, entry: &str) -> bool {
        self.text.contains(&format!(".entry {entry}("))
    }
}

/// A kernel and how much dynamic shared memory it is launched with.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub function: Function,
    pub shared: u32,
}

/// The kernels that were used so far.
pub struct Kernels {
    capability: (u32, u32),
    known: HashMap<(&'static str, String), Kernel>,
}

impl Kernels {
    /// For a device of this compute capability.
    ///
    /// # Errors
    /// If there are none for it.
    pub fn new(capability: (u32, u32)) -> Result<Self> {
        if capability < PORTABLE {
            bail!(
                "compute capability {}.{}; the kernels need 8.0 or later (A100, RTX 30, or newer)",
                capability.0,
                capability.1
            );
        }
        Ok(Self { capability, known: HashMap::new() })
    }

    /// The kernel `entry` of an op: that for Hopper where the device is one and the file has it, else the portable one.
    pub fn find(&mut self, driver: &dyn Driver, op: &'static str, entry: &str) -> Result<Kernel> {
        if let Some(kernel) = self.known.get(&(op, entry.to_string())) {
            return Ok(*kernel);
        }
        let targets: &[&str] = if self.capability == HOPPER { &["sm_90a", "sm_80"] } else { &["sm_80"] };
        let file = targets.iter().find_map(|t| files().find(|f| f.op == op && f.target == *t && f.has(entry)));
        let file = file.ok_or_else(|| anyhow!("no kernel {entry} in ptx/{op}.*.ptx"))?;
        let shared = file.shared().find(|(name, _)| *name == entry).map_or(0, |(_, bytes)| bytes);
        let kernel = Kernel { function: driver.function(file.path, file.text, entry, shared)?, shared };
        self.known.insert((op, entry.to_string()), kernel);
        Ok(kernel)
    }
}
