//! What waits for what: copies of threads, phases of barriers, the asynchronous proxy, registers that warp groups trade
//! (PTX ISA 9.7.9.25, 9.7.13.15, 9.7.20.5).

use anyhow::Result;

use super::{Check, equal, given, gpu, launch, one_block, room, words};
use crate::device::gpu::{Arg, Swizzle, TensorMapDesc};
use crate::device::{DType, Device, Tensor};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "cp.async", hopper: false, exact: true, run: copy, judge: copied },
    Check { name: "phases of barriers", hopper: true, exact: true, run: barrier, judge: phases },
    Check { name: "fences of the asynchronous proxy", hopper: true, exact: true, run: proxy, judge: rows_stored },
    Check { name: "registers that warp groups trade", hopper: true, exact: true, run: pool, judge: traded },
];

/// Bytes 1, 2, ... without zeros.
fn counted(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i % 251) as u8 + 1).collect()
}

fn copy(device: &Device, _: usize) -> Vec<Tensor> {
    let (from, mut out) = (given(device, &counted(64 * 16)), room(device, 64 * 20));
    launch(device, "semantics_cp_async", one_block(64), [from.arg(), out.arg_mut()]);
    vec![out]
}

fn copied(out: &[Vec<u8>], _: usize) -> Result<String> {
    let from = counted(64 * 16);
    let mut want = Vec::new();
    for t in 0..64 {
        // What another thread has copied: its first bytes, then zeros.
        let other: usize = t ^ 33;
        for (bytes, size) in [(16, other % 17), (4, other % 5)] {
            want.extend((0..bytes).map(|i| if i < size { from[bytes * other + i] } else { 0 }));
        }
    }
    equal("bytes", &out[0], &want)?;
    Ok(String::new())
}

fn barrier(device: &Device, _: usize) -> Vec<Tensor> {
    let (from, mut out) = (given(device, &counted(32)), room(device, 64));
    launch(device, "semantics_barrier", one_block(32), [from.arg(), out.arg_mut()]);
    vec![out]
}

fn phases(out: &[Vec<u8>], _: usize) -> Result<String> {
    // Before any arrival the phase of parity 1 is complete and that of parity 0 is not; one of two arrivals changes nothing,
    // both do; both without the bytes that are awaited do not; the bytes do.
    let mut want = vec![1, 0, 0, 1, 0, 0, 1, 0];
    want.extend(words(&counted(32)));
    equal("answers, then data", &words(&out[0]), &want)?;
    Ok(String::new())
}

/// Rows of 64 words that are stored one after the other.
const ROWS: usize = 48;

fn proxy(device: &Device, _: usize) -> Vec<Tensor> {
    let mut out = room(device, ROWS * 256);
    let Arg::Ptr(base) = out.arg_mut() else { unreachable!("an address") };
    let map = gpu(device).tensor_map(&TensorMapDesc {
        dtype: DType::F32,
        base,
        dims: vec![64, ROWS as u64],
        strides: vec![256],
        tile: vec![64, 1],
        steps: vec![1, 1],
        swizzle: Swizzle::None,
    });
    launch(device, "semantics_proxy", one_block(64), [map, (ROWS as u32).into()]);
    vec![out]
}

fn rows_stored(out: &[Vec<u8>], _: usize) -> Result<String> {
    let want: Vec<u32> = (0..ROWS as u32 * 64).collect();
    equal("words", &words(&out[0]), &want)?;
    Ok(String::new())
}

/// Numbers of each thread, and threads that hold them.
const HELD: usize = 192;
const HOLDERS: usize = 256;

fn held() -> Vec<f32> {
    (0..HELD + HOLDERS).map(|i| (i * 37 % 101) as f32 / 8.0 - 6.0).collect()
}

fn pool(device: &Device, _: usize) -> Vec<Tensor> {
    let (x, mut out) = (given(device, bytemuck::cast_slice(&held())), room(device, 4 * HOLDERS));
    launch(device, "semantics_pool", one_block(384), [x.arg(), out.arg_mut()]);
    vec![out]
}

fn traded(out: &[Vec<u8>], _: usize) -> Result<String> {
    let x = held();
    let want = (0..HOLDERS).map(|t| {
        let mut v = x[t..t + HELD].to_vec();
        for _ in 0..4 {
            let first = v[0];
            for i in 0..HELD {
                v[i] = 0.5f32.mul_add(v[i], if i + 1 < HELD { v[i + 1] } else { first });
            }
        }
        v.iter().fold(0f32, |sum, v| sum + v).to_bits()
    });
    equal("sums", &words(&out[0]), &want.collect::<Vec<_>>())?;
    Ok(String::new())
}
