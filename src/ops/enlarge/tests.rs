use super::*;
use crate::ops::copy::owned;
use crate::ops::testing::{devices, random};

/// The pixel of `x` `[b, h, w, c]` that channel `c` of pixel `(y, x)` comes from.
fn source(x: &Tensor, [image, y, column, c]: [usize; 4], factor: usize) -> usize {
    ((image * x.dim(1) + y / factor) * x.dim(2) + column / factor) * x.dim(3) + c
}

#[test]
fn pixels_are_repeated_in_both_directions() {
    let cases = [(1, 3, 1), (2, 16, 4), (8, 5, 1), (2, 8, 3)];
    for (device, (factor, channels, first)) in devices().iter().flat_map(|d| cases.map(|case| (d, case))) {
        let x = random(&[2, 3, 5, channels], 1).to(device);
        let (height, width) = (3 * factor, 5 * factor);
        let y = random(&[2, height, width, channels], 2).to(device);
        let mut sum = owned(&y);
        add(&mut sum, &x, factor);
        let mut wider = owned(&random(&[2, height, width, channels + 4], 3).to(device));
        let before = wider.to_host();
        place(&mut wider, first, &x, factor);
        let (sum, placed, from, y) = (sum.to_host(), wider.to_host(), x.to_host(), y.to_host());
        for (i, before) in before.into_iter().enumerate() {
            let (c, pixel) = (i % (channels + 4), i / (channels + 4));
            let at = [pixel / width / height, pixel / width % height, pixel % width];
            if !(first..first + channels).contains(&c) {
                assert_eq!(placed[i], before, "channel {c} is another's");
                continue;
            }
            let value = from[source(&x, [at[0], at[1], at[2], c - first], factor)];
            assert_eq!(placed[i], value);
            let same = pixel * channels + c - first;
            assert_eq!(sum[same], y[same] + value);
        }
    }
}

#[test]
fn a_pixel_unfolds_to_four() {
    for (device, channels) in devices().iter().flat_map(|d| [3, 8].map(|channels| (d, channels))) {
        let x = random(&[2, 3, 5, 4 * channels], 1).to(device);
        let y = unfold(&x);
        assert_eq!(y.shape(), [2, 6, 10, channels]);
        let (x, y) = (x.to_host(), y.to_host());
        for (i, got) in y.into_iter().enumerate() {
            let (c, pixel) = (i % channels, i / channels);
            let (image, row, column) = (pixel / 60, pixel / 10 % 6, pixel % 10);
            let from = ((image * 3 + row / 2) * 5 + column / 2) * 4 * channels;
            assert_eq!(got, x[from + (row % 2 * 2 + column % 2) * channels + c], "{device:?}");
        }
    }
}
