//! Post-trains flow-matching text-to-image models with reinforcement learning, in one native program.
//!
//! Reading the modules in the order below is following the data: files and prompts come in through [`io`], live
//! on a [`device`], are transformed by [`ops`] that [`models`] are built of, [`rollout`] samples images, and
//! [`rewards`] judge them.

pub mod algorithms;
pub mod config;
pub mod data;
pub mod device;
pub mod io;
pub mod models;
pub mod ops;
pub mod rewards;
pub mod rollout;
pub mod telemetry;
pub mod train;
