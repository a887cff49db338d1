//! Kernels that do the same in different ways, at the shapes of Stable Diffusion 3.5 Medium: which is fastest.

use anyhow::Result;
use engine::device::gpu::Variant;

use super::measure::{Session, Work};
