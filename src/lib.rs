//! Post-trains flow-matching text-to-image models with reinforcement learning, in one native program.
//!
//! Reading the modules in this order is following the data: a [`config`] names prompts ([`data`]) and a model, whose files
//! come in through [`io`] and live on a [`device`]; [`ops`] transform them, [`models`] are built of ops; [`rollout`]
//! samples images, [`rewards`] judge them, [`algorithms`] turn judgements into a gradient, and [`train`] goes round,
//! while [`telemetry`] reports and [`report`] makes a page of it. [`compare`] sets methods side by side. How fast: [`predict`] without the machine, [`mod@bench`] on it.

pub mod algorithms;
pub mod bench;
pub mod compare;
pub mod config;
pub mod data;
pub mod device;
#[cfg(test)]
mod exercises;
pub mod io;
pub mod models;
pub mod ops;
pub mod predict;
pub mod report;
pub mod rewards;
pub mod rollout;
pub mod telemetry;
pub mod train;
