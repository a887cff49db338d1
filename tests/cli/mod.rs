//! The program as its users meet it: above all what it says about their mistakes.

mod bench;
mod configs;
mod cuda;
mod files;
mod folders;
mod json;
mod plan;
mod runs;
mod sample;
mod score;
mod shell;
mod single_file;
mod untrusted;
mod usage;
mod vm;
mod weights;

use std::process::{Command, Output};

use engine::io::TensorFile;
use safetensors::{Dtype, SafeTensors};

/// Longest line that someone still reads.
const LONGEST: usize = 1500;

fn engine<A: AsRef<std::ffi::OsStr>>(args: &[A]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_engine")).args(args).output().unwrap()
}

/// Runs `engine` in `folder`.
fn engine_in<A: AsRef<std::ffi::OsStr>>(folder: &std::path::Path, args: &[A]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_engine")).args(args).current_dir(folder).output().unwrap()
}

/// The names of all subcommands, as `engine --help` has them.
fn subcommands() -> Vec<String> {
    let help = says(&["--help"]);
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names = commands.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    names.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help").map(str::to_string).collect()
}

/// Runs `engine` and demands exit code 2 and exactly one line on stderr that holds all of `words`.
fn refuses<A: AsRef<std::ffi::OsStr>>(args: &[A], words: &[&str]) {
    let output = engine(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty(), "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    check_line(stderr.trim_end_matches('\n'), words);
}

fn check_line(line: &str, words: &[&str]) {
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.len() <= LONGEST, "{} characters: {line}", line.len());
    assert!(!line.contains("panicked"), "{line}");
    for word in words {
        assert!(line.contains(word), "'{word}' is not in: {line}");
    }
}

/// Runs `engine`, which must succeed, and gives its standard output.
fn says<A: AsRef<std::ffi::OsStr>>(args: &[A]) -> String {
    let output = engine(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The bytes of a safetensors file with any header at all.
fn raw_file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A tensor on its way into a file.
#[derive(Clone)]
struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// The tensors of a safetensors file, to be changed and written again.
fn stored(bytes: &[u8]) -> Vec<Stored> {
    let mut tensors: Vec<Stored> = SafeTensors::deserialize(bytes)
        .unwrap()
        .iter()
        .map(|(name, t)| Stored {
            name: name.to_string(),
            dtype: t.dtype(),
            shape: t.shape().to_vec(),
            bytes: t.data().to_vec(),
        })
        .collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

fn serialized(tensors: &[Stored]) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|t| (&t.name, safetensors::tensor::TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn rewriting_changes_nothing_by_itself() {
    let path = crate::parity::fixture("mmdit/sd3/diffusion_pytorch_model.safetensors");
    let again = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(again.path(), serialized(&stored(&std::fs::read(&path).unwrap()))).unwrap();
    let [a, b] = [path.as_path(), again.path()].map(|p| TensorFile::open(p).unwrap());
    assert!(a.entries().map(|(n, e)| (n, e.raw())).eq(b.entries().map(|(n, e)| (n, e.raw()))));
}
