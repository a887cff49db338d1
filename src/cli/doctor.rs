use anyhow::Result;

/// Say what this machine offers: cores, vector instructions, memory, CUDA.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: Args) -> Result<()> {
    println!("cores  {}", std::thread::available_parallelism().map_or(1, usize::from));
    Ok(())
}
