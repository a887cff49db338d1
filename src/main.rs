//! The `engine` program: one file per subcommand in [`cli`].

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
