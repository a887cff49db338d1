use std::path::PathBuf;

use anyhow::Result;
use engine::io::TensorFile;

/// Say what is in a model folder, a checkpoint or a safetensors file.
#[derive(clap::Args)]
pub struct Args {
    /// Pipeline or component folder, checkpoint folder, or .safetensors file.
    path: PathBuf,
}

pub fn run(args: Args) -> Result<()> {
    let file = TensorFile::open(&args.path)?;
    for (name, entry) in file.entries() {
        println!("{name} {:?} {}", entry.shape(), entry.dtype_name());
    }
    Ok(())
}
