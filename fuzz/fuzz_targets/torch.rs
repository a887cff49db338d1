//! A file of PyTorch, zip or legacy: every tensor of one that is accepted can be read, and together those in memory of their own
//! are no larger than the file.
#![no_main]

use std::collections::BTreeMap;

use engine::device::Device;
use engine::io::TensorFile;
use engine::io::safetensors::save_stored;
use engine_fuzz::{check, folder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (path, again) = (folder().join("a.pth"), folder().join("b.safetensors"));
    std::fs::write(&path, data).unwrap();
    let Some(file) = check(TensorFile::open(&path)) else { return };
    let mut bytes = 0;
    for (name, entry) in file.entries() {
        assert_eq!(entry.raw().len(), entry.size());
        assert!(entry.size() <= data.len());
        assert!(file.other(name).is_none());
        bytes += entry.size();
        check(file.tensor(name, &Device::Cpu));
    }
    check(file.tensor_of("weight", &[2, 3], &Device::Cpu));
    if bytes > 1 << 20 {
        return;
    }
    save_stored(&again, &file, &BTreeMap::new(), &BTreeMap::new()).expect("what can be read can be written");
    let copy = TensorFile::open(&again).expect("what was written can be read");
    assert!(file.entries().map(|(n, e)| (n, e.raw())).eq(copy.entries().map(|(n, e)| (n, e.raw()))));
});
