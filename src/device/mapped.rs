//! Files mapped for reading, and what happens when one shrinks or cannot be read while it is.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, bail};
use memmap2::Mmap;

/// A read-only map of a whole file. A page that cannot be read any more reads as zeros instead of ending the process, and
/// [`check_mapped`] says so from then on.
pub struct MappedFile {
    map: Mmap,
    place: Option<usize>,
}

impl MappedFile {
    /// Maps `file`, which was opened at `path`.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new(file: &File, path: &Path) -> std::io::Result<Self> {
        // SAFETY: the map is read-only. Somebody else may write to the file, which is what `check` below is for; numbers may
        // be anything anyway.
        let map = unsafe { Mmap::map(file) }?;
        let start = map.as_ptr() as usize;
        let place = watch(start..start + map.len(), path);
        Ok(Self { map, place })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            PLACES[place].end.store(0, Ordering::SeqCst);
            PLACES[place].start.store(0, Ordering::SeqCst);
        }
    }
}

/// An address range that is mapped; `start` is 0 where the place is free and 1 while it is being filled.
struct Place {
    start: AtomicUsize,
    end: AtomicUsize,
}

/// What the signal handler reads, which may take no lock. Files beyond these are mapped but not watched.
static PLACES: [Place; 256] = [const { Place { start: AtomicUsize::new(0), end: AtomicUsize::new(0) } }; 256];
/// The paths of the ranges.
static PATHS: Mutex<[Option<PathBuf>; 256]> = Mutex::new([const { None }; 256]);
/// One more than the place whose file could not be read; 0 if all could.
static FAULT: AtomicUsize = AtomicUsize::new(0);

fn watch(range: Range<usize>, path: &Path) -> Option<usize> {
    if !is_watching() {
        return None;
    }
    let free = |p: &Place| p.start.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    let place = PLACES.iter().position(free)?;
    PATHS.lock().unwrap_or_else(|e| e.into_inner())[place] = Some(path.to_path_buf());
    PLACES[place].end.store(range.end, Ordering::SeqCst);
    PLACES[place].start.store(range.start, Ordering::SeqCst);
    Some(place)
}

/// Fails once a page of a mapped file could not be read: what was computed since is worth nothing.
///
/// # Errors
/// Names the file.
pub fn check_mapped() -> Result<()> {
    let Some(place) = FAULT.load(Ordering::SeqCst).checked_sub(1) else { return Ok(()) };
    let paths = PATHS.lock().unwrap_or_else(|e| e.into_inner());
    let path = paths[place].as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    bail!("{path} was changed or became unreadable while it was in use")
}

#[cfg(unix)]
mod handler {
    use std::mem::zeroed;
    use std::ptr::null_mut;
    use std::sync::OnceLock;

    use libc::{SA_ONSTACK, SA_SIGINFO, SIG_DFL, SIGBUS, c_int, c_void, sigaction, siginfo_t};
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

    use super::{FAULT, Ordering, PLACES};

    static PAGE: OnceLock<Option<usize>> = OnceLock::new();

    /// Whether faults are caught; installs the handler at the first call. It takes the place of the one of Rust's library,
    /// which gives up at the first fault.
    pub fn is_watching() -> bool {
        let page = PAGE.get_or_init(|| {
            // SAFETY: a zeroed action without a mask is a valid one, and the handler has the signature that its flags ask
            // for.
            let installed = unsafe {
                let mut action: sigaction = zeroed();
                action.sa_sigaction = on_fault as *const () as usize;
                action.sa_flags = SA_SIGINFO | SA_ONSTACK;
                sigaction(SIGBUS, &action, null_mut())
            };
            (installed == 0).then(rustix::param::page_size)
        });
        page.is_some()
    }

    /// Puts zeros in the place of what cannot be read, from the page of the address to the end of its file's map; the
    /// instruction is then tried again. Reads atomics and makes system calls only: all that a handler may do.
    extern "C" fn on_fault(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
        let page = PAGE.get().copied().flatten().unwrap_or(4096);
        // SAFETY: the system passes what happened.
        let address = unsafe { (*info).si_addr() } as usize;
        for (i, place) in PLACES.iter().enumerate() {
            let (start, end) = (place.start.load(Ordering::SeqCst), place.end.load(Ordering::SeqCst));
            if start <= 1 || !(start..end).contains(&address) {
                continue;
            }
            let first = address / page * page;
            let length = end.next_multiple_of(page) - first;
            let flags = MapFlags::PRIVATE | MapFlags::FIXED;
            // SAFETY: these pages belong to the map of this place, which nothing but its owner takes away.
            if unsafe { mmap_anonymous(first as *mut _, length, ProtFlags::READ, flags) }.is_ok() {
                FAULT.store(i + 1, Ordering::SeqCst);
                return;
            }
        }
        // Not one of ours: as if there were no handler, when the instruction is tried again.
        // SAFETY: a zeroed action with the default handler is a valid one.
        unsafe {
            let mut action: sigaction = zeroed();
            action.sa_sigaction = SIG_DFL;
            sigaction(SIGBUS, &action, null_mut());
        }
    }
}
#[cfg(unix)]
use handler::is_watching;

#[cfg(not(unix))]
fn is_watching() -> bool {
    false
}

#[cfg(all(test, unix))]
mod tests {
    use std::process::Command;

    use super::*;

    const FOLDER: &str = "ENGINE_TEST_MAPPED";

    #[test]
    #[ignore = "runs only as a child of the test below"]
    fn child_whose_file_shrinks() {
        let Some(folder) = std::env::var_os(FOLDER) else { return };
        let path = Path::new(&folder).join("weights");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let map = MappedFile::new(&File::open(&path).unwrap(), &path).unwrap();
        check_mapped().unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
        // Not in the order of addresses: each lies before what was found unreadable last.
        let read: Vec<u8> = [900_000, 500_000, 100_000, 3].map(|at| map[at]).to_vec();
        assert_eq!(read, [0, 0, 0, 7]);
        let error = check_mapped().unwrap_err().to_string();
        assert!(error.ends_with("weights was changed or became unreadable while it was in use"), "{error}");
        std::fs::write(Path::new(&folder).join("survived"), "").unwrap();
    }

    #[test]
    fn a_mapped_file_that_shrinks_reads_as_zeros_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "device::mapped::tests::child_whose_file_shrinks"])
            .env(FOLDER, dir.path())
            .output()
            .unwrap();
        assert!(child.status.success() && dir.path().join("survived").exists(), "{child:?}");
    }
}
