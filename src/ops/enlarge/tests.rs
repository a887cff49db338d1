use super::*;
use crate::ops::copy::owned;
use crate::ops::testing::random;

/// The pixel of `x` `[b, h, w, c]` that channel `c` of pixel `(y, x)` comes from.
fn source(x: &Tensor, [image, y, column, c]: [usize; 4], factor: usize) -> usize {
    ((image * x.dim(1) + y / factor) * x.dim(2) + column / factor) * x.dim(3) + c
}

#[test]
fn pixels_are_repeated_in_both_directions() {
    for (factor, channels) in [(1, 3), (2, 16), (8, 5)] {
        let x = random(&[2, 3, 5, channels], 1);
        let (height, width) = (3 * factor, 5 * factor);
        let y = random(&[2, height, width, channels], 2);
        let mut sum = owned(&y);
        add(&mut sum, &x, factor);
        let mut wider = random(&[2, height, width, channels + 4], 3);
        let before = wider.to_host();
        place(&mut wider, 1, &x, factor);
        let (sum, placed, from, y) = (sum.to_host(), wider.to_host(), x.to_host(), y.to_host());
        for (i, before) in before.into_iter().enumerate() {
            let (c, pixel) = (i % (channels + 4), i / (channels + 4));
            let at = [pixel / width / height, pixel / width % height, pixel % width];
            if !(1..=channels).contains(&c) {
                assert_eq!(placed[i], before, "channel {c} is another's");
                continue;
            }
            let value = from[source(&x, [at[0], at[1], at[2], c - 1], factor)];
            assert_eq!(placed[i], value);
            let same = pixel * channels + c - 1;
            assert_eq!(sum[same], y[same] + value);
        }
    }
}

#[test]
fn a_pixel_unfolds_to_four() {
    let x = random(&[2, 3, 5, 12], 1);
    let y = unfold(&x);
    assert_eq!(y.shape(), [2, 6, 10, 3]);
    let (x, y) = (x.to_host(), y.to_host());
    for (i, got) in y.into_iter().enumerate() {
        let (c, pixel) = (i % 3, i / 3);
        let (image, row, column) = (pixel / 60, pixel / 10 % 6, pixel % 10);
        let from = ((image * 3 + row / 2) * 5 + column / 2) * 12;
        assert_eq!(got, x[from + (row % 2 * 2 + column % 2) * 3 + c]);
    }
}
