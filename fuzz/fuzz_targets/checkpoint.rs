//! A checkpoint: damaged as on a disk, or with checksums that hold over content that no run wrote.
#![no_main]

use std::sync::{LazyLock, Mutex};

use engine::config::{self, Job};
use engine::device::Device;
use engine::train::checkpoint;
use engine::train::setup::{self, Setup};
use engine::train::state::{State, checkpoint_config, modules_of, saved_average};
use engine_fuzz::{check, choice, fixture, folder, write_files};
use libfuzzer_sys::fuzz_target;

/// Between state and tensors.
const NEXT_FILE: &[u8] = b"\n=====\n";

/// The run that resumes.
static SETUP: LazyLock<Mutex<Setup>> = LazyLock::new(|| {
    let prompts = folder().join("prompts.txt");
    std::fs::write(&prompts, "a red circle\ntwo blue squares\n").unwrap();
    let text = include_str!("../run.toml");
    let mut raw = config::parse("run.toml", text).expect("the config of the corpus");
    (raw.model, raw.prompts.train, raw.prompts.eval) = (fixture("pipeline/no_t5"), prompts.clone(), prompts);
    let planned = setup::check(raw, Job::Train).expect("the config of the corpus");
    Mutex::new(planned.load(&Device::Cpu).expect("the model of the tests"))
});

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = choice(data, 2) else { return };
    let folder = folder().join("epoch-000001");
    std::fs::create_dir_all(&folder).unwrap();
    match which {
        0 => write_files(&folder, &["state.json", "state.safetensors"], data),
        _ => {
            let at = data.windows(NEXT_FILE.len()).position(|w| w == NEXT_FILE).unwrap_or(data.len());
            let (meta, tensors) = (&data[..at], data.get(at + NEXT_FILE.len()..).unwrap_or_default());
            let crc = crc32fast::hash(tensors);
            let sum = format!("{{\"bytes\":{},\"crc32\":\"{crc:08x}\"}}", tensors.len());
            let files = format!("\"files\":{{\"state.safetensors\":{sum}}}");
            let rest = [format!("\"format\":1,{files},\"meta\":").as_bytes(), meta, b"}\n"].concat();
            let first = format!("{{\"crc32\": \"{:08x}\",\n", crc32fast::hash(&rest));
            std::fs::write(folder.join("state.json"), [first.as_bytes(), &rest].concat()).unwrap();
            std::fs::write(folder.join("state.safetensors"), tensors).unwrap();
        }
    }
    check(checkpoint::find(folder.parent().unwrap()));
    let Some(saved) = check(checkpoint::load(&folder)) else { return };
    let setup = SETUP.lock().unwrap();
    check(State::from_checkpoint(&setup, &saved));
    if let Some(config) = check(checkpoint_config(&saved)) {
        check(saved_average(&saved, &config, &modules_of(&saved), &Device::Cpu));
    }
});
