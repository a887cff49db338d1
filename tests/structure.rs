//! What the source must look like for its promises to hold.

use std::path::{Path, PathBuf};

/// Every file of Rust under `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let files = entries.flat_map(|p| if p.is_dir() { sources(&p) } else { vec![p] });
    files.filter(|p| p.extension().is_some_and(|e| e == "rs")).collect()
}

/// The methods that give a tensor's memory itself. `to_host` and `to_raw`, which copy and wait for the device, are for all.
const HOST_ACCESS: [&str; 6] =
    [".host()", ".host_mut()", ".host_bytes()", ".host_bytes_mut()", ".stored_bytes()", ".elems()"];

/// Where the processor's memory is at home: the device, the rooms of the ops that run on it, and files.
fn is_at_home(file: &str) -> bool {
    let room = file.starts_with("ops/") && (file.ends_with("/cpu.rs") || file.starts_with("ops/cpu/"));
    file.starts_with("device/") || file.starts_with("io/") || room
}

/// Only there may tensors be looked into: then all else runs wherever they are.
#[test]
fn host_memory_is_only_reached_in_the_processors_own_rooms() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut trespassers, mut rooms) = (Vec::new(), 0);
    for path in sources(&root) {
        let file = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
        let text = std::fs::read_to_string(&path).unwrap();
        // Tests may look.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = code.lines().enumerate().filter(|(_, l)| HOST_ACCESS.iter().any(|access| l.contains(access)));
        let found: Vec<String> = lines.map(|(i, l)| format!("{file}:{}: {}", i + 1, l.trim())).collect();
        rooms += usize::from(!found.is_empty() && is_at_home(&file));
        if !is_at_home(&file) && !file.ends_with("tests.rs") && !file.ends_with("testing.rs") {
            trespassers.extend(found);
        }
    }
    assert!(rooms > 20, "only {rooms} rooms were found: the methods have other names");
    assert!(trespassers.is_empty(), "{}", trespassers.join("\n"));
}

/// An op has one name in every folder: its contract, its room, its tests.
#[test]
fn every_op_has_a_contract_a_room_and_tests() {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let folders = std::fs::read_dir(&ops).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir());
    let folders: Vec<PathBuf> = folders.filter(|p| !p.ends_with("cpu")).collect();
    for folder in &folders {
        for file in ["mod.rs", "cpu.rs", "tests.rs"] {
            assert!(folder.join(file).is_file(), "{} has no {file}", folder.display());
        }
    }
    assert!(folders.len() > 20);
}
