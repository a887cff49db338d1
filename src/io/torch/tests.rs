use std::path::{Path, PathBuf};

use super::super::{Loader, TensorFile};
use crate::device::Device;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

fn error(path: &Path) -> String {
    format!("{:#}", TensorFile::open(path).err().unwrap_or_else(|| panic!("{} is read", path.display())))
}

#[test]
fn both_formats_hold_what_pytorch_says_they_do() {
    let expected = TensorFile::open(&fixture("expected.safetensors")).unwrap();
    for name in ["zip.pth", "legacy.pth", "legacy4.pth", "nested.pth", "model.pt"] {
        let file = TensorFile::open(&fixture(name)).unwrap();
        assert!(file.names().eq(expected.names()), "{name}: {:?}", file.names().collect::<Vec<_>>());
        for (tensor, entry) in expected.entries() {
            let found = file.entry(tensor).unwrap();
            assert_eq!((found.stored(), found.shape()), (entry.stored(), entry.shape()), "{name}: {tensor}");
            assert_eq!(found.raw(), entry.raw(), "{name}: {tensor}");
        }
    }
    let file = TensorFile::open(&fixture("nested.pth")).unwrap();
    let metadata: Vec<_> = file.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(metadata, [("epoch", "3"), ("note", "a")]);
}

#[test]
fn objects_are_refused_by_name_and_nothing_is_run() {
    for (name, words) in [
        (
            "malicious.pth",
            "the file's object is made by posix.system, expected a dict of tensors; code in a file is never run",
        ),
        ("malicious_legacy.pth", "the file's object is made by posix.system, expected a dict of tensors"),
        ("module.pth", "the file's object is made by torch.nn.modules.linear.Linear, expected a dict of tensors"),
        (
            "module_legacy.pth",
            "there are no tensors; 'model' is made by torch.nn.modules.linear.Linear; code in a file",
        ),
        ("script.pt", "a TorchScript archive, which holds a program"),
    ] {
        let error = error(&fixture(name));
        assert!(error.contains(&format!("{name}: {words}")), "{error}");
    }
    // Only who wants the weight is troubled.
    let file = TensorFile::open(&fixture("malicious_weight.pth")).unwrap();
    assert!(file.tensor("bias", &Device::Cpu).is_ok());
    let error = file.tensor("weight", &Device::Cpu).unwrap_err().to_string();
    assert!(error.ends_with("'weight' is made by posix.system, expected a tensor"), "{error}");
    let loader = Loader::new(&file, &[], &Device::Cpu);
    let root = loader.root();
    root.tensor("bias", &[3, 5]);
    root.tensor("weight", &[3, 5]);
    let error = loader.finish().unwrap_err().to_string();
    assert!(error.ends_with("'weight' is made by posix.system, expected a tensor"), "{error}");
    assert!(!Path::new("/tmp/engine_was_here").exists());
}

#[test]
fn a_component_that_only_pytorch_saved_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| std::fs::copy(fixture(from), dir.path().join(to)).unwrap();
    copy("zip.pth", "pytorch_model.bin");
    let names = |variant| TensorFile::open_component(dir.path(), "model", variant).unwrap().names().count();
    assert_eq!((names(None), names(Some("fp16"))), (19, 19));
    // One of safetensors comes first.
    copy("../single_file.safetensors", "model.safetensors");
    assert!(names(None) != 19);
}

#[test]
fn a_damaged_file_is_refused_or_read_but_never_more_than_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pth");
    for name in ["zip.pth", "legacy.pth"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        for length in (8..whole.len()).step_by(31) {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(error(&path).contains("a.pth: "));
        }
        for at in (0..whole.len()).step_by(3) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x15;
            std::fs::write(&path, &damaged).unwrap();
            let Ok(file) = TensorFile::open(&path) else { continue };
            for (_, entry) in file.entries() {
                assert_eq!(entry.raw().len(), entry.size());
                assert!(entry.size() <= whole.len());
            }
        }
    }
    std::fs::write(&path, b"\x80\x04K\x01.junk").unwrap();
    assert!(error(&path).contains("not one of torch.save: it begins with what is a whole number"));
    std::fs::write(&path, std::fs::read(fixture("zip.pth")).unwrap().get(..3000).unwrap()).unwrap();
    assert!(error(&path).contains("ends too early or is damaged"), "{}", error(&path));
}
