//! The fused operations the models are made of, one folder each. `mod.rs` is the contract: it says what is computed, checks
//! shapes, allocates what is returned and hands over to the room of the device; rooms only fill. `cpu.rs` is the
//! processor's room and the reference for every other device, `tests.rs` one body of tests for all of them. Shapes that do
//! not fit are a mistake in this program and panic; whatever a user can get wrong is checked before an op sees it.

pub mod activation;
pub mod adaln;
pub mod adamw;
pub mod affine;
pub mod attention;
pub mod combine;
pub mod conv2d;
pub mod copy;
pub mod cpu;
pub mod cross_attention;
pub mod deformable;
pub mod depthwise;
pub mod dequantise;
pub mod embedding;
pub mod enlarge;
pub mod fp8;
pub mod gate;
pub mod group_norm;
pub mod layer_norm;
pub mod lerp;
pub mod linear;
pub mod math;
pub mod noise;
pub mod noising;
pub mod norm;
pub mod normalise;
pub mod patchify;
pub mod pointwise;
pub mod pool;
pub mod position;
pub mod products;
pub mod quantise;
pub mod resample;
pub mod resize;
pub mod rms_norm;
pub mod rope;
pub mod squeeze;
pub mod step;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod timestep;
pub mod windows;

/// Hands over to the room of a tensor's device. A plan has none: what the contract has allocated is all it wants to know,
/// beside the last argument, if there is one: the op's work ([`Work`](crate::device::work::Work)). The plan of a GPU takes
/// it too, else the bytes of what its launches get.
macro_rules! dispatch {
    (@works) => { Vec::new() };
    (@works $works:expr) => { Vec::from($works) };
    ($on:expr, $f:ident($($arg:expr),* $(,)?) $(, $works:expr)?) => {
        match $on.device() {
            $crate::device::Device::Cpu => cpu::$f($($arg),*),
            $crate::device::Device::Gpu(gpu) => {
                let op = concat!(module_path!(), "::", stringify!($f));
                let _doing = gpu.doing(op, || $crate::ops::dispatch!(@works $($works)?));
                cuda::$f($($arg),*)
            }
            $crate::device::Device::Plan(ledger) => {
                ledger.did(concat!(module_path!(), "::", stringify!($f)), $crate::ops::dispatch!(@works $($works)?));
                Default::default()
            }
        }
    };
}
use dispatch;
