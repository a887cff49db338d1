//! What keeps a run whole: one run per output folder, and a signal ends it between steps, not in the middle of one.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::device::check_mapped;
use crate::telemetry::warn;

/// The right to write to an output folder; ends when dropped, or with the process in whatever way.
pub struct OutputLock {
    file: File,
    path: PathBuf,
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        // Closing alone leaves the lock to a child that another thread has forked and that has not yet begun its program.
        let _ = self.file.unlock();
    }
}

impl OutputLock {
    /// Creates `folder` if need be and locks it, by an advisory lock on the file `.lock` in it.
    ///
    /// # Errors
    /// If another run holds the lock, naming its process; or if the folder cannot be written to. Warns where the file system
    /// has no locks.
    pub fn acquire(folder: &Path) -> Result<Self> {
        Self::acquire_by(folder, File::try_lock)
    }

    fn acquire_by(folder: &Path, try_lock: impl FnOnce(&File) -> Result<(), TryLockError>) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(".lock");
        let cannot = || format!("cannot write {}", path.display());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // A link here could lead to any file of its owner's, which is then written to.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        let mut file = options.open(&path).with_context(cannot)?;
        match try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let holder = pid.trim().parse::<u32>().map(|pid| format!(", process {pid}")).unwrap_or_default();
                bail!("{} is in use by another run{holder}; choose another output folder", folder.display());
            }
            // Some file systems know no locks (NFS without lockd, Lustre without -o flock): no reason not to train.
            Err(TryLockError::Error(e)) => {
                warn(&format!("cannot lock {} ({e}): a second run in this folder would not be noticed", path.display()))
            }
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).with_context(cannot)?;
        Ok(Self { file, path })
    }

    /// Fails if the folder is no longer the one that was locked: everything written from now on would be lost, or another
    /// run's.
    ///
    /// # Errors
    /// Names the folder.
    pub fn check(&self) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let id = |m: std::fs::Metadata| (m.dev(), m.ino());
            let there = std::fs::symlink_metadata(&self.path).map(id).ok();
            if there.is_none() || there != self.file.metadata().map(id).ok() {
                bail!("the output folder {} was removed or replaced while the run was writing to it", folder.display());
            }
        }
        Ok(())
    }
}

/// A signal asked for the end; holds the exit code that says which: 128 and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted(pub u8);

/// Whether the user, or who runs the machine, asked the run to stop.
#[derive(Clone)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
    /// The signal that came first.
    signal: Arc<AtomicUsize>,
}

/// What asks a run to stop: Ctrl-C, `kill`, a terminal or connection that goes, and what batch systems send before the time is
/// up.
const SIGNALS: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGUSR1];

impl Interrupt {
    /// From now on the first SIGINT, SIGTERM, SIGHUP or SIGUSR1 only makes [`Interrupt::requested`] true; a second SIGINT or
    /// SIGTERM ends the process at once with exit code 128 and its number. All of a process are one: what comes between two
    /// runs is not lost.
    ///
    /// # Errors
    /// If the system refuses the handlers.
    pub fn install() -> Result<Self> {
        static INSTALLED: Mutex<Option<Interrupt>> = Mutex::new(None);
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interrupt) = &*installed {
            return Ok(interrupt.clone());
        }
        let interrupt = Self::never();
        for signal in SIGNALS {
            let (flag, first) = (interrupt.flag.clone(), interrupt.signal.clone());
            let cannot = "cannot handle signals";
            // Handlers run in this order: the first signal finds the flag still down. A connection that goes may send
            // SIGHUP and SIGTERM, and several times: only who insists ends what is being saved.
            if [SIGINT, SIGTERM].contains(&signal) {
                flag::register_conditional_shutdown(signal, 128 + signal, flag.clone()).context(cannot)?;
            }
            flag::register_usize(signal, first, signal as usize).context(cannot)?;
            flag::register(signal, flag).context(cannot)?;
        }
        Ok(installed.insert(interrupt).clone())
    }

    /// One that no signal reaches, for use as a library.
    pub fn never() -> Self {
        Self { flag: Arc::default(), signal: Arc::default() }
    }

    /// Whether a signal has come: finish the step, save and exit.
    pub fn requested(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// For use between two steps of long work, before its result counts.
    ///
    /// # Errors
    /// [`Interrupted`] once a signal has come; or if a file that is in use has changed.
    pub fn check(&self) -> Result<()> {
        check_mapped()?;
        if self.requested() { Err(Interrupted(128 + self.signal.load(Ordering::Relaxed) as u8).into()) } else { Ok(()) }
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
    fn where_there_are_no_locks_a_run_goes_on_and_where_there_are_one_holds() {
        for code in [libc::ENOLCK, libc::ENOSYS, libc::EOPNOTSUPP] {
            let dir = tempfile::tempdir().unwrap();
            let none = |_: &File| Err(TryLockError::Error(std::io::Error::from_raw_os_error(code)));
            let lock = OutputLock::acquire_by(dir.path(), none).unwrap();
            lock.check().unwrap();
            let pid = std::fs::read_to_string(dir.path().join(".lock")).unwrap();
            assert_eq!(pid.trim(), std::process::id().to_string());
            // Nothing is held: another one, which cannot know, goes on too.
            OutputLock::acquire_by(dir.path(), none).unwrap();
            drop(lock);
            let error = OutputLock::acquire_by(dir.path(), |_| Err(TryLockError::WouldBlock)).err().unwrap();
            assert!(error.to_string().contains("is in use by another run"), "{error}");
        }
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
