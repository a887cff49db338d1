//! A safetensors file: every tensor of one that is accepted can be read, and written again to the same numbers.
#![no_main]

use std::collections::BTreeMap;

use engine::device::Device;
use engine::io::TensorFile;
use engine::io::safetensors::save_stored;
use engine_fuzz::{check, folder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (path, again) = (folder().join("a.safetensors"), folder().join("b.safetensors"));
    std::fs::write(&path, data).unwrap();
    let Some(file) = check(TensorFile::open(&path)) else { return };
    for (name, entry) in file.entries() {
        assert_eq!(entry.raw().len(), entry.size());
        entry.stored().name();
        check(file.tensor(name, &Device::Cpu));
        check(file.tensor_of(name, &[2, 3], &Device::Cpu));
    }
    save_stored(&again, &file, &BTreeMap::new(), file.metadata()).expect("what can be read can be written");
    let copy = TensorFile::open(&again).expect("what was written can be read");
    assert!(file.entries().map(|(n, e)| (n, e.raw())).eq(copy.entries().map(|(n, e)| (n, e.raw()))));
    assert_eq!(file.metadata(), copy.metadata());
});
