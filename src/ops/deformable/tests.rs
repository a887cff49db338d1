use super::*;
use crate::device::Device;
use crate::io::TensorFile;
use crate::ops::testing::{check_batch_invariance, fixture, max_error, random, wide};

const LEVELS: [[usize; 2]; 2] = [[3, 5], [7, 4]];

/// The fixture is `grid_sample`'s work in f64.
#[test]
fn points_are_sampled_as_torch_does_also_outside_of_the_image() {
    let file = TensorFile::open(&fixture("mask2former/io.safetensors")).unwrap();
    let [values, offsets, weights, want] = ["values", "offsets", "weights", "out"]
        .map(|name| file.tensor(&format!("deformable.{name}"), &Device::Cpu).unwrap());
    let got = forward(&values, &offsets, &weights, Pyramid(&LEVELS), 4);
    let error = max_error(&got, &wide(&want));
    assert!(error < 2e-6, "off by {error:e}");
}

#[test]
fn a_sample_gives_the_same_bits_alone_and_in_a_batch() {
    let n = Pyramid(&LEVELS).tokens();
    let [values, offsets, weights] = [16, 96, 48].map(|width| random(&[9, n, width], width as u64));
    check_batch_invariance("deformable", |samples| {
        let [values, offsets, weights] = [&values, &offsets, &weights].map(|t| t.slice(samples.clone()));
        forward(&values, &offsets, &weights, Pyramid(&LEVELS), 4)
    });
}

#[test]
#[should_panic(expected = "deformable: there is no kernel for it, its network belongs on the CPU")]
fn a_gpu_is_refused() {
    let gpu = Device::vm(ptxvm::Options::default()).unwrap();
    let [values, offsets, weights] = [16, 96, 48].map(|width| random(&[1, 43, width], 1).to(&gpu));
    forward(&values, &offsets, &weights, Pyramid(&LEVELS), 4);
}
