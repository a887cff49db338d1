//! What the targets share: a folder of their own, and inputs that stand for several files.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Between the files of one input.
const NEXT_FILE: &[u8] = b"\n=====\n";

/// The folder that this process writes its inputs to; in memory where the system has such a place.
pub fn folder() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        // `run` says where, to clean up whatever ends the process.
        let parent = std::env::var_os("ENGINE_FUZZ_FOLDER").map_or(parent, PathBuf::from);
        let folder = parent.join(format!("engine-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the inputs");
        folder
    });
    &FOLDER
}

/// What is in the tests' folder of fixtures at `name`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// Writes the parts of `input` to `folder` as the files `names`, in their order; a file without a part is not there.
pub fn write_files(folder: &Path, names: &[&str], input: &[u8]) {
    let mut rest = Some(input);
    for name in names {
        let path = folder.join(name);
        match rest.take() {
            None => _ = std::fs::remove_file(path),
            Some(bytes) => {
                let at = bytes.windows(NEXT_FILE.len()).position(|w| w == NEXT_FILE);
                let (part, after) = at.map_or((bytes, None), |at| (&bytes[..at], Some(&bytes[at + NEXT_FILE.len()..])));
                std::fs::write(path, part).expect("the folder can be written to");
                rest = after;
            }
        }
    }
}

/// The first byte of `input`, as a choice of one in `count`, and the rest. `0` to `9` choose what they say.
pub fn choice(input: &[u8], count: usize) -> Option<(usize, &[u8])> {
    let (first, rest) = input.split_first()?;
    Some((usize::from(first.wrapping_sub(b'0')) % count, rest))
}

/// Fails if an error is not the one line it will be printed as.
pub fn check<T, E: std::fmt::Display>(result: Result<T, E>) -> Option<T> {
    result.map_err(|e| assert!(!format!("{e:#}").is_empty(), "an error without words")).ok()
}
