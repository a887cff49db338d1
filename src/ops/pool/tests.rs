use super::*;
use crate::ops::testing::{bits, check_batch_invariance, devices, max_error, random, wide};

#[test]
fn windows_are_averaged_and_the_rest_is_dropped() {
    for (height, width, channels, size) in [(3, 7, 5, [3, 2]), (8, 8, 16, [2, 2]), (7, 5, 3, [3, 1]), (4, 4, 2, [1, 1])]
    {
        let x = random(&[2, height, width, channels], 1);
        let [y, on_gpu] = devices().map(|device| average(&x.to(&device), size));
        assert!(bits(&y) == bits(&on_gpu), "{:?} by {size:?}: other bits", x.shape());
        let (h, w) = (height / size[0], width / size[1]);
        assert_eq!(y.shape(), [2, h, w, channels]);
        let values = wide(&x);
        let of = |i: usize| {
            let (c, pixel) = (i % channels, i / channels);
            let (image, row, column) = (pixel / w / h, pixel / w % h * size[0], pixel % w * size[1]);
            let window = (0..size[0]).flat_map(|y| (0..size[1]).map(move |x| (row + y, column + x)));
            let sum: f64 = window.map(|(y, x)| values[((image * height + y) * width + x) * channels + c]).sum();
            sum / (size[0] * size[1]) as f64
        };
        let want: Vec<f64> = (0..y.len()).map(of).collect();
        assert!(max_error(&y, &want) < 1e-6, "{:?} by {size:?}", x.shape());
    }
}

#[test]
fn a_sample_alone_and_in_a_batch_gives_the_same_bits() {
    let x = random(&[9, 9, 34, 70], 1);
    check_batch_invariance("average", |r| average(&x.slice(r), [3, 2]));
}
