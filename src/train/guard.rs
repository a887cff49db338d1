//! What keeps a run whole: one run per output folder, and a signal ends it between steps, not in the middle of one.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The right to write to an output folder; ends when dropped, or with the process in whatever way.
pub struct OutputLock {
    _file: File,
}

impl OutputLock {
    /// Creates `folder` if need be and locks it, by an advisory lock on the file `.lock` in it.
    ///
    /// # Errors
    /// If another run holds the lock, naming its process; or if the folder cannot be written to.
    pub fn acquire(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(".lock");
        let cannot = || format!("cannot write {}", path.display());
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let mut file = options.open(&path).with_context(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let holder = pid.trim().parse::<u32>().map(|pid| format!(", process {pid}")).unwrap_or_default();
                bail!("{} is in use by another run{holder}; choose another output folder", folder.display());
            }
            Err(TryLockError::Error(e)) => return Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).with_context(cannot)?;
        Ok(Self { _file: file })
    }
}

/// The user asked the run to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Whether the user asked the run to stop.
#[derive(Clone)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on the first SIGINT or SIGTERM only makes [`Interrupt::requested`] true; the second ends the process at
    /// once with exit code 130.
    ///
    /// # Errors
    /// If the system refuses the handlers.
    pub fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Handlers run in this order: the first signal finds the flag still down.
            flag::register_conditional_shutdown(signal, 130, flag.clone()).context("cannot handle signals")?;
            flag::register(signal, flag.clone()).context("cannot handle signals")?;
        }
        Ok(Self { flag })
    }

    /// One that no signal reaches, for use as a library.
    pub fn never() -> Self {
        Self { flag: Arc::default() }
    }

    /// Whether a signal has come: finish the step, save and exit.
    pub fn requested(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// For use between two steps of long work.
    ///
    /// # Errors
    /// [`Interrupted`] once a signal has come.
    pub fn check(&self) -> Result<()> {
        if self.requested() { Err(Interrupted.into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use super::*;

    const FOLDER: &str = "ENGINE_TEST_GUARD";

    fn child(name: &str, folder: &Path) -> Output {
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", &format!("train::guard::tests::{name}")])
            .env(FOLDER, folder)
            .output()
            .unwrap()
    }

    #[test]
    fn two_runs_cannot_share_an_output_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("outputs/run");
        let lock = OutputLock::acquire(&folder).unwrap();
        let error = OutputLock::acquire(&folder).err().unwrap().to_string();
        let pid = std::process::id();
        assert!(error.ends_with(&format!("is in use by another run, process {pid}; choose another output folder")));
        drop(lock);
        OutputLock::acquire(&folder).unwrap();
    }

    #[test]
    #[ignore = "runs only as a child of the test below"]
    fn child_that_dies_holding_the_lock() {
        let Some(folder) = std::env::var_os(FOLDER) else { return };
        let _lock = OutputLock::acquire(Path::new(&folder)).unwrap();
        std::process::abort();
    }

    #[test]
    fn a_run_that_crashed_holds_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!child("child_that_dies_holding_the_lock", dir.path()).status.success());
        assert!(dir.path().join(".lock").exists());
        OutputLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = OutputLock::acquire(&file.path().join("run")).err().unwrap().to_string();
        assert!(error.starts_with("cannot create ") && error.ends_with("/run"), "{error}");
    }

    #[test]
    #[ignore = "runs only as a child of the test below"]
    fn child_that_is_interrupted_twice() {
        let Some(folder) = std::env::var_os(FOLDER) else { return };
        let interrupt = Interrupt::install().unwrap();
        assert!(!interrupt.requested());
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(interrupt.requested());
        std::fs::write(Path::new(&folder).join("saved"), "").unwrap();
        signal_hook::low_level::raise(SIGINT).unwrap();
        std::fs::write(Path::new(&folder).join("still alive"), "").unwrap();
    }

    #[test]
    fn the_first_signal_asks_and_the_second_ends_the_process_with_130() {
        let dir = tempfile::tempdir().unwrap();
        let output = child("child_that_is_interrupted_twice", dir.path());
        assert_eq!(output.status.code(), Some(130));
        assert!(dir.path().join("saved").exists() && !dir.path().join("still alive").exists());
        assert!(!Interrupt::never().requested());
    }
}
