//! Embeds ptx/, refusing files that are not what kernels/ would give, and configs/. Needs no CUDA.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use sha2::{Digest, Sha256};

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=ptx");
    println!("cargo::rerun-if-changed=configs");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where the package is"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where to write"));
    for (name, table) in [("ptx.rs", table(&root)), ("configs.rs", configs(&root))] {
        match table {
            Ok(table) => fs::write(out.join(name), table).expect("the build folder can be written"),
            Err(why) => {
                println!("cargo::error={why}");
                std::process::exit(1);
            }
        }
    }
}

/// Rust source of the list of files under configs/: `(path in that folder, text)`, ordered by path.
fn configs(root: &Path) -> Result<String, String> {
    let (top, mut table, mut todo) = (root.join("configs"), BTreeMap::new(), vec![root.join("configs")]);
    while let Some(folder) = todo.pop() {
        for path in listed(&folder)? {
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let name = path.strip_prefix(&top).expect("found there").to_string_lossy().replace('\\', "/");
            table.insert(name, path.display().to_string());
        }
    }
    let rows = table.iter().map(|(name, path)| format!("    ({name:?}, include_str!({path:?})),\n"));
    Ok(format!("&[\n{}]", rows.collect::<String>()))
}

/// Rust source of the list of embedded files: `(op, target, path, text)`.
pub fn table(root: &Path) -> Result<String, String> {
    let kernels = root.join("kernels");
    let mut table = String::from("&[\n");
    for source in listed(&kernels)?.into_iter().filter(|p| p.extension().is_some_and(|e| e == "cu")) {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (op, target) = stem.split_once('.').unwrap_or((&stem, "sm_80"));
        let file = root.join(format!("ptx/{op}.{target}.ptx"));
        let shown = format!("ptx/{op}.{target}.ptx");
        let text = fs::read_to_string(&file).map_err(|e| format!("{shown}: {e}; run tools/kernels.py {op}"))?;
        if !text.lines().take(4).any(|l| l == format!("// sources {}", digest(&kernels, &source).unwrap_or_default())) {
            return Err(format!("{shown} is not compiled from the sources that are there; run tools/kernels.py {op}"));
        }
        writeln!(table, "    ({op:?}, {target:?}, {shown:?}, include_str!({:?})),", file.display().to_string())
            .expect("text");
    }
    table.push(']');
    Ok(table)
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.sort();
    Ok(files)
}

/// SHA-256 of all that decides what a source is compiled to; tools/kernels.py has the same.
pub fn digest(kernels: &Path, source: &Path) -> Result<String, String> {
    let mut found = BTreeSet::from([kernels.join("toolchain.txt")]);
    let mut todo = vec![source.to_path_buf()];
    while let Some(file) = todo.pop() {
        if !found.insert(file.clone()) {
            continue;
        }
        let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let includes = text.lines().filter_map(|l| l.strip_prefix("#include \"")?.split('"').next());
        todo.extend(includes.map(|name| kernels.join(name)));
    }
    let mut hash = Sha256::new();
    for file in found {
        let name = file.strip_prefix(kernels).unwrap_or(&file).to_string_lossy().into_owned();
        let bytes = fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        for part in [name.as_bytes(), b"\0", &bytes, b"\0"] {
            hash.update(part);
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
