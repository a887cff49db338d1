//! Whole training runs of the built program on a small random model.

mod commands;
mod compare;
#[cfg(unix)]
mod events;
#[cfg(unix)]
mod first_order;
mod fp8;
mod gpu;
#[cfg(unix)]
mod hopper;
pub mod identity;
#[cfg(unix)]
mod kills;
mod memory;
mod methods;
mod report;
mod resume;
mod rewards;
#[cfg(unix)]
mod rsm;
mod scaling;
mod speed;
mod step;
mod stops;
mod theory;
#[cfg(unix)]
mod vm;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::parity::fixture;

/// The built program with `args`.
pub fn engine(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_engine")).args(args).output().unwrap()
}

/// A folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The config of a run of three epochs with `extra` lines, written into `folder`.
pub fn write_config(folder: &Path, extra: &str) -> PathBuf {
    let prompts = folder.join("prompts.txt");
    std::fs::write(&prompts, "a red circle\ntwo blue squares\na green field\nthe sun\n").unwrap();
    let text = format!(
        "algorithm = 'ram'\nmodel = '{}'\nnum_epochs = 3\n\
         prompts = {{ train = '{p}', eval = '{p}', max_sequence_length = 4 }}\n\
         rewards = {{ jpeg_compressibility = 1.0 }}\n\
         ram = {{ reward_multiplier = 5.0, num_noisings = 2 }}\n\
         lora = {{ rank = 2, alpha = 4.0 }}\n\
         ema = {{ decay = 0.9, interval = 1 }}\n\
         eval = {{ every = 2, num_inference_steps = 2, guidance_scale = 1.0 }}\n\
         checkpoint = {{ every = 1, keep = 2 }}\n\
         [rollout]\nnum_prompts_per_epoch = 2\nnum_images_per_prompt = 3\nnum_inference_steps = 3\nresolution = 32\n\
         batch_size = 3\nguidance_scale = 2.0\n{extra}\n[train]\nbatch_size = 4\n",
        fixture("pipeline/no_t5").display(),
        p = prompts.display(),
    );
    let path = folder.join("tiny.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// `engine train` to `output`, not started yet.
pub fn train_command(config: &Path, output: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.arg("train").arg("--config").arg(config).arg("--output-dir").arg(output).args(args);
    command
}

/// Runs `engine train` to `output`.
pub fn train(config: &Path, output: &Path, args: &[&str]) -> Output {
    train_command(config, output, args).output().unwrap()
}

/// Fails with what the program printed unless it succeeded.
pub fn assert_success(output: &Output) {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

/// The bytes of the checkpoint after `epoch` in the run at `output`.
pub fn checkpoint_bytes(output: &Path, epoch: u32) -> Vec<(String, Vec<u8>)> {
    let folder = output.join("checkpoints").join(format!("epoch-{epoch:06}"));
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|f| f.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&p).unwrap()))
        .collect();
    files.sort();
    files
}
