use super::*;
use crate::device::Device;
use crate::ops::pointwise::Curve;
use crate::ops::testing::{bits, check_batch_invariance, devices, max_error, on_vm, random, wide};

/// The convolution in f64, straight from its definition, with a hard swish.
fn reference(x: &Tensor, w: &Tensor, bias: &Tensor, stride: [usize; 2]) -> Vec<f64> {
    let &[b, height, width, channels] = x.shape() else { unreachable!() };
    let k = w.dim(2);
    let (x, w, bias) = (wide(x), wide(w), wide(bias));
    let mut out = Vec::new();
    for image in 0..b {
        for y in (0..height).step_by(stride[0]) {
            for column in (0..width).step_by(stride[1]) {
                for c in 0..channels {
                    let mut sum = bias[c];
                    for (dy, dx) in (0..k).flat_map(|dy| (0..k).map(move |dx| (dy, dx))) {
                        let (at_y, at_x) = ((y + dy).wrapping_sub(k / 2), (column + dx).wrapping_sub(k / 2));
                        if at_y < height && at_x < width {
                            sum +=
                                x[((image * height + at_y) * width + at_x) * channels + c] * w[(c * k + dy) * k + dx];
                        }
                    }
                    out.push(sum * (sum + 3.0).clamp(0.0, 6.0) / 6.0);
                }
            }
        }
    }
    out
}

#[test]
fn every_window_matches_the_definition_in_f64_also_in_images_smaller_than_it() {
    for kernel in KERNELS {
        for stride in [[1, 1], [2, 2], [2, 1], [1, 2]] {
            // Channels below, at and off a block; images of one pixel, narrower and wider than the window.
            for (height, width, channels) in [(1, 1, 16), (3, 2, 5), (6, 9, 24), (7, 4, 33), (12, 40, 8)] {
                let (x, w) = (random(&[2, height, width, channels], 1), random(&[channels, 1, kernel, kernel], 2));
                let bias = random(&[channels], 3);
                let run = |device: Device| {
                    let [x, w, bias] = [&x, &w, &bias].map(|t| t.to(&device));
                    forward(&x, &arranged(&w), &bias, stride, Curve::HardSwish)
                };
                let all = devices().map(run);
                let error = max_error(&all[0], &reference(&x, &w, &bias, stride));
                assert!(error < 1e-6, "{kernel} by {stride:?} of {:?}: {error:e}", x.shape());
                assert!(bits(&all[0]) == bits(&all[1]), "{kernel} by {stride:?} of {:?}: other bits", x.shape());
            }
        }
    }
}

#[test]
fn a_sample_alone_and_in_a_batch_gives_the_same_bits() {
    let (x, w, bias) = (random(&[9, 31, 37, 40], 1), arranged(&random(&[40, 1, 5, 5], 2)), random(&[40], 3));
    check_batch_invariance("depthwise", |r| forward(&x.slice(r), &w, &bias, [2, 1], Curve::Relu));
}

#[test]
fn kernels_give_a_sample_the_same_bits_in_any_batch_and_whatever_the_order() {
    for channels in [24, 5] {
        let (x, w, bias) = (random(&[3, 6, 9, channels], 1), random(&[channels, 1, 5, 5], 2), random(&[channels], 3));
        let run = |device: &Device, samples: std::ops::Range<usize>| {
            let [x, w, bias] = [&x.slice(samples), &w, &bias].map(|t| t.to(device));
            forward(&x, &arranged(&w), &bias, [2, 1], Curve::Relu)
        };
        let got = on_vm(|device| vec![run(device, 0..3), run(device, 1..2)]);
        assert!(bits(&got[0].slice(1..2)) == bits(&got[1]), "{channels} channels");
    }
}
