use super::*;
use crate::device::Device;
use crate::ops::copy::owned;
use crate::ops::testing::{bits, check_batch_invariance, devices, max_error, on_vm, random, wide};

#[test]
fn means_and_gates_are_of_channels() {
    for (height, width, channels) in [(1, 1, 3), (7, 5, 24), (40, 33, 97)] {
        let (x, pixels) = (random(&[2, height, width, channels], 1), height * width);
        let values = wide(&x);
        let at = |i: usize| {
            let (image, c) = (i / channels, i % channels);
            (0..pixels).map(|p| values[(image * pixels + p) * channels + c]).sum::<f64>() / pixels as f64
        };
        let want: Vec<f64> = (0..2 * channels).map(at).collect();
        let gates = random(&[2, channels], 2);
        for device in devices() {
            let (x, gates) = (x.to(&device), gates.to(&device));
            assert!(max_error(&means(&x), &want) < 1e-6, "{:?} on {device:?}", x.shape());
            let mut y = owned(&x);
            excite(&mut y, &gates);
            let (x, gates) = (x.to_host(), gates.to_host());
            for (i, got) in y.to_host().into_iter().enumerate() {
                assert_eq!(got, x[i] * gates[i / (pixels * channels) * channels + i % channels], "{device:?}");
            }
        }
    }
}

#[test]
fn a_sample_alone_and_in_a_batch_gives_the_same_bits() {
    let x = random(&[9, 40, 33, 70], 1);
    check_batch_invariance("means", |r| means(&x.slice(r)));
}

#[test]
fn kernels_give_a_sample_the_same_bits_in_any_batch_and_whatever_the_order() {
    // Several chunks of pixels, and a part of one.
    let x = random(&[3, 40, 27, 37], 1);
    let run = |device: &Device, samples: std::ops::Range<usize>| means(&x.slice(samples).to(device));
    let got = on_vm(|device| vec![run(device, 0..3), run(device, 1..2)]);
    assert!(bits(&got[0].slice(1..2)) == bits(&got[1]));
}
