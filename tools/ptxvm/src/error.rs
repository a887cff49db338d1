//! What can go wrong before a kernel runs: text that is not understood, arguments that do not fit.

use thiserror::Error;

/// A refusal. Every variant is one line that says where, what was found and what is needed.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum Error {
    /// The text is not PTX as far as this crate knows PTX.
    #[error("{file}:{line}: {message}")]
    Parse {
        /// The name the text was given.
        file: String,
        /// Line, from 1.
        line: u32,
        /// Found and expected.
        message: String,
    },
    /// A launch that a driver would refuse too.
    #[error("{0}")]
    Launch(String),
    /// Device memory: an address, a size or a tensor map that cannot be.
    #[error("{0}")]
    Memory(String),
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A message without its place; the caller adds file and line.
pub(crate) type Found<T> = std::result::Result<T, String>;
