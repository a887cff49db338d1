use super::*;
use crate::device::Device;
use crate::io::TensorFile;
use crate::ops::testing::{bits, check_batch_invariance, devices, fixture, max_error, on_vm, random, wide};

const LEVELS: [[usize; 2]; 2] = [[3, 5], [7, 4]];

/// The fixture is `grid_sample`'s work in f64.
#[test]
fn points_are_sampled_as_torch_does_also_outside_of_the_image() {
    let file = TensorFile::open(&fixture("mask2former/io.safetensors")).unwrap();
    let [values, offsets, weights, want] = ["values", "offsets", "weights", "out"]
        .map(|name| file.tensor(&format!("deformable.{name}"), &Device::Cpu).unwrap());
    for device in devices() {
        let [values, offsets, weights] = [&values, &offsets, &weights].map(|t| t.to(&device));
        let got = forward(&values, &offsets, &weights, Pyramid(&LEVELS), 4);
        let error = max_error(&got, &wide(&want));
        assert!(error < 2e-6, "off by {error:e} on {device:?}");
    }
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
fn kernels_give_a_sample_the_same_bits_in_any_batch_and_whatever_the_order() {
    // Heads of a part of a warp's lanes, and of more than them; fewer points than lanes, and more.
    for (heads, d, points) in [(2, 20, 3), (1, 70, 18)] {
        let n = Pyramid(&LEVELS).tokens();
        let shares = heads * LEVELS.len() * points;
        let [values, offsets, weights] =
            [heads * d, 2 * shares, shares].map(|width| random(&[2, n, width], width as u64));
        let run = |device: &Device, samples: std::ops::Range<usize>| {
            let [values, offsets, weights] = [&values, &offsets, &weights].map(|t| t.slice(samples.clone()).to(device));
            forward(&values, &offsets, &weights, Pyramid(&LEVELS), heads)
        };
        let got = on_vm(|device| vec![run(device, 0..2), run(device, 1..2)]);
        assert!(bits(&got[0].slice(1..2)) == bits(&got[1]), "{heads} heads of {d}");
        // Both round every product and sum once, in the same order but for the total of the softmax.
        let error = max_error(&got[0], &wide(&run(&Device::Cpu, 0..2)));
        assert!(error < 1e-6, "{heads} heads of {d}: off by {error:e}");
    }
}
