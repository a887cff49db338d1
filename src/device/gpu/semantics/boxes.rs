//! Bulk copies of boxes of tensors: zeros beyond the edges, clipping, steps, swizzles (PTX ISA 5.5, 9.7.9.27).

use anyhow::Result;

use super::{Check, equal, given, gpu, launch, one_block, room};
use crate::device::gpu::{Arg, Swizzle, TensorMapDesc};
use crate::device::{DType, Device, Tensor};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "boxes that are loaded", hopper: true, exact: true, run: load, judge: loaded },
    Check { name: "boxes that are stored", hopper: true, exact: true, run: store, judge: stored },
];

/// A tensor, a box of it and where the box begins; innermost dimension first.
struct Case {
    dtype: DType,
    dims: &'static [usize],
    /// Elements from one row to the next.
    pitch: usize,
    tile: &'static [usize],
    steps: &'static [usize],
    swizzle: Swizzle,
    at: &'static [i32],
}

const PLAIN: Case = Case {
    dtype: DType::Bf16,
    dims: &[40, 13],
    pitch: 48,
    tile: &[16, 5],
    steps: &[1, 1],
    swizzle: Swizzle::None,
    at: &[8, 4],
};

const PICTURE: Case =
    Case { dims: &[24, 7, 5, 2], pitch: 24, tile: &[16, 4, 3, 1], steps: &[1; 4], at: &[0, 1, 1, 1], ..PLAIN };

const CASES: [Case; 17] = [
    PLAIN,
    Case { at: &[-3, -2], ..PLAIN },
    Case { at: &[35, 11], ..PLAIN },
    Case { at: &[-16, 0], ..PLAIN },
    Case { at: &[0, 13], ..PLAIN },
    Case { dtype: DType::F32, at: &[29, -1], ..PLAIN },
    Case { dtype: DType::U8, at: &[25, -1], ..PLAIN },
    Case { swizzle: Swizzle::B32, tile: &[16, 9], at: &[8, -2], ..PLAIN },
    Case { swizzle: Swizzle::B64, tile: &[32, 12], at: &[24, 1], ..PLAIN },
    Case { swizzle: Swizzle::B128, tile: &[64, 11], at: &[-1, 3], ..PLAIN },
    Case { swizzle: Swizzle::B128, dtype: DType::F32, tile: &[32, 11], at: &[13, -3], ..PLAIN },
    Case { steps: &[1, 2], tile: &[16, 9], at: &[30, -1], ..PLAIN },
    PICTURE,
    Case { at: &[16, -1, -1, 0], ..PICTURE },
    Case { at: &[8, 5, 3, 1], ..PICTURE },
    Case { steps: &[1, 2, 2, 1], tile: &[16, 7, 5, 1], at: &[0, -1, -1, 1], ..PICTURE },
    Case { swizzle: Swizzle::B128, tile: &[64, 4, 3, 1], at: &[0, -2, 3, 1], ..PICTURE },
];

impl Case {
    fn size(&self) -> usize {
        self.dtype.bytes(1)
    }

    /// Elements of the tensor, with what is between rows.
    fn elements(&self) -> usize {
        self.pitch * self.dims[1..].iter().product::<usize>()
    }

    /// Bytes of the tensor: those of element i are of the number `first + i`.
    fn bytes(&self, first: usize, elements: usize) -> Vec<u8> {
        let of = |i: usize| ((first + i) as u32).wrapping_mul(0x0101_0001).to_le_bytes()[..self.size()].to_vec();
        (0..elements).flat_map(of).collect()
    }

    /// Elements of the box that move along each dimension.
    fn counts(&self) -> Vec<usize> {
        self.tile.iter().zip(self.steps).map(|(tile, step)| tile.div_ceil(*step)).collect()
    }

    fn box_bytes(&self) -> usize {
        self.counts().iter().product::<usize>() * self.size()
    }

    /// Where each element of the box is: its first byte in shared memory, and its number in the tensor if it has one.
    fn places(&self) -> Vec<(usize, Option<usize>)> {
        let (counts, pattern) = (self.counts(), self.swizzle.bytes() as usize);
        let place = |n: usize| {
            let (mut rest, mut inside, mut index, mut pitch) = (n, true, 0, 1);
            for (d, count) in counts.iter().enumerate() {
                let p = i64::from(self.at[d]) + (rest % count * self.steps[d]) as i64;
                rest /= count;
                inside &= (0..self.dims[d] as i64).contains(&p);
                index += if inside { p as usize * pitch } else { 0 };
                pitch = if d == 0 { self.pitch } else { pitch * self.dims[d] };
            }
            let byte = n * self.size();
            // Sixteen bytes trade places with others of their row, by the row.
            let swapped = byte >> 7 & (pattern / 16).saturating_sub(1);
            (byte ^ swapped << 4, inside.then_some(index))
        };
        (0..counts.iter().product()).map(place).collect()
    }

    fn map(&self, device: &Device, base: Arg) -> Arg {
        let Arg::Ptr(base) = base else { unreachable!("an address") };
        let mut strides = vec![(self.pitch * self.size()) as u64];
        for d in &self.dims[1..self.dims.len() - 1] {
            strides.push(strides[strides.len() - 1] * *d as u64);
        }
        gpu(device).tensor_map(&TensorMapDesc {
            dtype: self.dtype,
            base,
            dims: self.dims.iter().map(|d| *d as u64).collect(),
            strides,
            tile: self.tile.iter().map(|t| *t as u32).collect(),
            steps: self.steps.iter().map(|s| *s as u32).collect(),
            swizzle: self.swizzle,
        })
    }

    /// Launches a kernel on `map`, another tensor, the bytes of a box, and where it begins.
    fn launch(&self, device: &Device, kernel: &str, map: Arg, other: Arg) {
        let at = self.at.iter().map(|c| Arg::from(*c));
        let args = [map, other, (self.box_bytes() as u32).into()].into_iter().chain(at);
        launch(device, &format!("semantics_{kernel}_{}d", self.dims.len()), one_block(128), args);
    }

    fn name(&self) -> String {
        format!(
            "box {:?} in steps of {:?} at {:?} of {:?}, {:?}",
            self.tile, self.steps, self.at, self.dims, self.swizzle
        )
    }
}

/// Cases that stores have: a step is for loads.
fn of_stores() -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(|c| c.steps.iter().all(|s| *s == 1))
}

fn load(device: &Device, _: usize) -> Vec<Tensor> {
    let run = |case: &Case| {
        let from = given(device, &case.bytes(1, case.elements()));
        let mut out = room(device, case.box_bytes());
        case.launch(device, "load", case.map(device, from.arg()), out.arg_mut());
        out
    };
    CASES.iter().map(run).collect()
}

fn loaded(out: &[Vec<u8>], _: usize) -> Result<String> {
    for (case, got) in CASES.iter().zip(out) {
        let (tensor, size) = (case.bytes(1, case.elements()), case.size());
        let mut want = vec![0; case.box_bytes()];
        for (at, index) in case.places() {
            if let Some(i) = index {
                want[at..at + size].copy_from_slice(&tensor[i * size..(i + 1) * size]);
            }
        }
        equal(&case.name(), got, &want)?;
    }
    Ok(format!("{} boxes", CASES.len()))
}

/// What a tensor holds before a box is stored in it.
const BEFORE: u8 = 0x5A;

fn store(device: &Device, _: usize) -> Vec<Tensor> {
    let run = |case: &Case| {
        let from = given(device, &case.bytes(7, case.box_bytes() / case.size()));
        let mut to = given(device, &vec![BEFORE; case.elements() * case.size()]);
        let map = case.map(device, to.arg_mut());
        case.launch(device, "store", map, from.arg());
        to
    };
    of_stores().map(run).collect()
}

fn stored(out: &[Vec<u8>], _: usize) -> Result<String> {
    for (case, got) in of_stores().zip(out) {
        let (shared, size) = (case.bytes(7, case.box_bytes() / case.size()), case.size());
        let mut want = vec![BEFORE; case.elements() * size];
        for (at, index) in case.places() {
            if let Some(i) = index {
                want[i * size..(i + 1) * size].copy_from_slice(&shared[at..at + size]);
            }
        }
        equal(&case.name(), got, &want)?;
    }
    Ok(format!("{} boxes", out.len()))
}
