use std::sync::Arc;

use super::*;
use crate::device::{Blocks, Device, MappedFile};
use crate::io::TensorFile;
use crate::ops::testing::{devices, on_vm, random};
use crate::ops::{embedding, linear, testing};

/// `rows` equal rows of the fixture's blocks, and what they stand for (`tools/oracle/blocks.py`).
fn fixture(blocks: Blocks, rows: usize, scale: f32) -> (Tensor, Vec<f32>) {
    let path = testing::fixture("blocks.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let bytes = file.entry(&format!("{}.bytes", blocks.name())).unwrap().raw().repeat(rows);
    let values = file.entry(&format!("{}.values", blocks.name())).unwrap().to_f32().unwrap().repeat(rows);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blocks");
    std::fs::write(&path, &bytes).unwrap();
    let map = Arc::new(MappedFile::new(&std::fs::File::open(&path).unwrap(), &path).unwrap());
    let shape = [rows, values.len() / rows];
    (Tensor::mapped(&map, 0..bytes.len(), DType::Blocks(blocks), scale, &shape), values)
}

#[test]
fn every_format_gives_the_values_of_the_gguf_package_and_of_pytorch() {
    for blocks in Blocks::ALL {
        let (x, want) = fixture(blocks, 1, 1.0);
        let differs = |(got, want): &(&f32, &f32)| got.to_bits() != want.to_bits() && !(got.is_nan() && want.is_nan());
        for device in devices() {
            let y = forward(&x.to(&device));
            let wrong = y.to_host().iter().zip(&want).position(|pair| differs(&pair));
            assert_eq!((wrong, y.len()), (None, want.len()), "{} on {device:?}", blocks.name());
        }
    }
}

#[test]
fn kernels_give_the_cpu_s_bits_for_whole_matrices_and_parts_of_them() {
    for blocks in Blocks::ALL {
        let (x, _) = fixture(blocks, 5, -0.5);
        let parts = |x: &Tensor| vec![forward(x), forward(&x.slice(1..4)), embedding::forward(&[4, 0, 3, 3], x)];
        let mut want = parts(&x);
        want.push(linear::rounded(&want[0], DType::Bf16));
        let got = on_vm(|device| {
            let x = x.to(device);
            parts(&x).into_iter().chain([operand(&x)]).collect()
        });
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            assert_eq!(got.dtype(), want.dtype());
            assert!(got.to_host().iter().zip(&want.to_host()).all(same), "{}", blocks.name());
        }
    }
}

#[test]
fn many_rows_are_decoded_as_one_is_and_are_times_the_scale() {
    // Several tasks, and no whole number of them.
    for blocks in [Blocks::F8E5M2, Blocks::Q8_0, Blocks::Q6K] {
        let (x, want) = fixture(blocks, 211, -0.5);
        for device in devices() {
            let y = forward(&x.to(&device)).to_host();
            assert!(y.iter().zip(&want).all(|(y, w)| *y == -0.5 * w || w.is_nan()), "{}", blocks.name());
        }
    }
}

#[test]
fn what_is_not_in_blocks_is_handed_on() {
    let x = random(&[2, 3], 1);
    assert_eq!(forward(&x).host().as_ptr(), x.host().as_ptr());
}

#[test]
fn layers_and_tables_use_what_their_blocks_stand_for() {
    let (weight, values) = fixture(Blocks::Q4K, 7, 1.0);
    let plain = Tensor::from_slice(&Device::Cpu, &values, weight.shape());
    let narrow = linear::rounded(&plain, DType::Bf16);
    let x = random(&[5, weight.width()], 3);
    let through = |weight: &Tensor| {
        let x = x.to(&weight.device());
        let layer = linear::Layer { weight, bias: None };
        let y = linear::forward(&x, layer, linear::Then::Nothing);
        let mut dx = x.scratch_like(x.shape());
        linear::backward(&y, weight, None, None, None, linear::InputGrad::Overwrite(&mut dx));
        let [each] = linear::forward_each(&x, [layer.into()]);
        [y.to_host(), dx.to_host(), each.to_host()]
    };
    let rows = |table: &Tensor| embedding::forward(&[6, 0, 3], table).to_host();
    for (device, multiplied) in devices().into_iter().zip([&plain, &narrow]) {
        assert_eq!(through(&weight.to(&device)), through(&multiplied.to(&device)), "{device:?}");
        assert_eq!(rows(&weight.to(&device)), rows(&plain));
    }
}
