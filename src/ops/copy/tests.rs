use super::*;
use crate::device::{DType, Device};
use crate::ops::testing::{devices, on_vm, random};

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

fn numbered(device: &Device, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_slice(device, &(0..n).map(|i| i as f32).collect::<Vec<_>>(), shape)
}

#[test]
fn rows_come_in_the_order_asked_for_and_one_after_another() {
    for device in devices() {
        let x = numbered(&device, &[3, 2]);
        assert_eq!(gather(&x, &[2, 0, 2]).to_host(), [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
        let both = concat(&[&x.slice(2..3), &x.slice(0..2)]);
        assert_eq!((both.shape(), both.to_host()), (&[3, 2][..], vec![4.0, 5.0, 0.0, 1.0, 2.0, 3.0]));
        assert!(gather(&x, &[]).is_empty());
    }
}

#[test]
fn rows_keep_the_type_they_are_stored_in() {
    for device in devices() {
        let x = numbered(&device, &[3, 2]);
        for dtype in [DType::F16, DType::Bf16] {
            let half = cast(&x, dtype);
            let rows = [gather(&half, &[2, 0]), concat(&[&half.slice(2..3), &half.slice(0..1)])];
            assert!(rows.iter().all(|r| r.dtype() == dtype && r.to_host() == [4.0, 5.0, 0.0, 1.0]));
        }
    }
}

#[test]
fn a_copy_shares_nothing() {
    for device in devices() {
        let x = numbered(&device, &[3]);
        let mut copy = owned(&x);
        flat_into(&mut copy, 0, &x.slice(2..3));
        assert_eq!((x.to_host(), copy.to_host()), (vec![0.0, 1.0, 2.0], vec![2.0, 1.0, 2.0]));
    }
}

#[test]
fn blocks_and_columns_lie_where_they_are_put() {
    for device in devices() {
        let mut out = Tensor::zeros(&device, &[2, 3, 4]);
        block_into(&mut out, 1, 2, &numbered(&device, &[2, 2, 2]));
        let want = [0., 0., 0., 0., 0., 0., 0., 1., 0., 0., 2., 3., 0., 0., 0., 0., 0., 0., 4., 5., 0., 0., 6., 7.];
        assert_eq!(out.to_host(), want);
        assert_eq!(columns(&out, 2, 2).to_host()[2..6], [0.0, 1.0, 2.0, 3.0]);
        flat_into(&mut out, 22, &numbered(&device, &[1, 2]));
        assert_eq!(out.to_host()[20..], [0.0, 0.0, 0.0, 1.0]);
    }
}

#[test]
#[should_panic(expected = "a tensor is written to only while nothing shares it")]
fn writing_to_a_shared_buffer_of_a_gpu_is_a_mistake() {
    let mut x = numbered(&devices()[1], &[4]);
    let part = x.slice(0..1);
    flat_into(&mut x, 1, &part);
}

#[test]
fn a_cast_rounds_to_nearest_even_and_takes_every_number_there_is() {
    let edges = [0.0, -0.0, 1.0 + f32::EPSILON, 65_519.9, 65_520.0, 5.9e-8, 2.9e-8, 1e-40, f32::INFINITY, f32::NAN];
    let ties = (0..300u32).map(|i| f32::from_bits(0x3F80_0000 + i * 0x800));
    let numbers: Vec<f32> = edges.into_iter().chain(ties).collect();
    for device in devices() {
        // A view whose first number does not lie at 16 bytes is taken one by one.
        for first in [0, 1, 2] {
            let x = Tensor::from_slice(&device, &numbers, &[numbers.len()]).slice(first..numbers.len());
            for (from, to) in TYPES.iter().flat_map(|from| TYPES.map(|to| (*from, to))) {
                let stored = cast(&x, from);
                let want: Vec<f32> = stored
                    .to_host()
                    .into_iter()
                    .map(|v| match to {
                        DType::F16 => half::f16::from_f32(v).to_f32(),
                        DType::Bf16 => half::bf16::from_f32(v).to_f32(),
                        _ => v,
                    })
                    .collect();
                let got = cast(&stored, to);
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                assert!(got.dtype() == to && got.to_host().iter().zip(&want).all(same), "{from:?} to {to:?}");
            }
        }
    }
}

/// Widths whose bytes are multiples of 16, of 8, of 4, of 2; and places that are less aligned than widths.
#[test]
fn kernels_move_bytes_in_units_of_every_size() {
    for dtype in [DType::U8, DType::F32, DType::F16] {
        for width in [1, 2, 3, 4, 8, 24, 33] {
            let of = |shape: &[usize]| {
                let n = dtype.bytes(shape.iter().product());
                let bytes: Vec<u8> = (0..n).map(|i| (i * 37 % 251) as u8).collect();
                Tensor::from_raw(&Device::Cpu, dtype, 1.0, &bytes, shape)
            };
            let (x, wide) = (of(&[3, 5, width]), of(&[3, 7, 40]));
            let all = |device: &Device| {
                let (x, wide) = (x.to(device), wide.to(device));
                let block = |token, column| {
                    let mut out = owned(&wide);
                    block_into(&mut out, token, column, &x);
                    out
                };
                let mut flat = owned(&wide);
                flat_into(&mut flat, 7, &x);
                let rows = x.clone().reshape(&[15, width]);
                let columns = if dtype == DType::U8 { x.clone() } else { columns(&wide, 7, width) };
                vec![
                    gather(&rows, &[14, 0, 3, 3]),
                    gather(&rows.slice(1..15), &[2, 1]),
                    block(0, 0),
                    block(2, 7),
                    flat,
                    columns,
                ]
            };
            for (i, (got, want)) in on_vm(all).iter().zip(all(&Device::Cpu)).enumerate() {
                assert_eq!(got.to_raw(), want.to_raw(), "{i} of {dtype:?}, {width} wide");
            }
        }
    }
}

#[test]
fn more_rows_than_a_block_has_threads() {
    let x = random(&[301, 9], 1);
    let rows: Vec<usize> = (0..700).map(|i| i * 53 % 301).collect();
    let got = on_vm(|device| vec![gather(&x.to(device), &rows), columns(&x.to(device), 2, 5)]);
    assert_eq!(got[0].to_raw(), gather(&x, &rows).to_raw());
    assert_eq!(got[1].to_raw(), columns(&x, 2, 5).to_raw());
}
