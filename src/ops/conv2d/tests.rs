use super::*;
use crate::device::DType;
use crate::ops::linear::rounded;
use crate::ops::testing::{bits, max_error, random, wide};

/// The convolution in f64, straight from its definition; the weight as files have it.
fn reference(x: &Tensor, w: &Tensor, bias: &Tensor, window: Window) -> (Vec<f64>, [usize; 2]) {
    let ([left, right, top, bottom], s) = (window.padding, window.stride);
    let &[b, h, width, channels] = x.shape() else { panic!("four axes") };
    let &[outputs, _, kh, kw] = w.shape() else { panic!("four axes") };
    let out = [(h + top + bottom - kh) / s + 1, (width + left + right - kw) / s + 1];
    let (x, w, bias) = (wide(x), wide(w), wide(bias));
    let mut y = Vec::new();
    for (b, i, j, o) in indices([b, out[0], out[1], outputs]) {
        let mut sum = bias[o];
        for (c, u, v, _) in indices([channels, kh, kw, 1]) {
            let (row, col) = ((i * s + u).wrapping_sub(top), (j * s + v).wrapping_sub(left));
            if row < h && col < width {
                sum += x[((b * h + row) * width + col) * channels + c] * w[((o * channels + c) * kh + u) * kw + v];
            }
        }
        y.push(sum);
    }
    (y, out)
}

fn indices([a, b, c, d]: [usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..a * b * c * d).map(move |i| (i / (b * c * d), i / (c * d) % b, i / d % c, i % d))
}

/// Every pixel twice in both directions.
fn enlarged(x: &Tensor) -> Tensor {
    let &[b, h, w, channels] = x.shape() else { panic!("four axes") };
    let at = |(b, i, j, c): (usize, usize, usize, usize)| x.host()[((b * h + i / 2) * w + j / 2) * channels + c];
    let data: Vec<f32> = indices([b, 2 * h, 2 * w, channels]).map(at).collect();
    Tensor::from_slice(&x.device(), &data, &[b, 2 * h, 2 * w, channels])
}

/// Batch, input channels, output channels, height, width, kernel, window.
fn cases() -> Vec<([usize; 6], Window)> {
    let uneven = |stride| Window { stride, padding: [2, 1, 0, 2] };
    vec![
        ([1, 1, 1, 1, 1, 3], Window::same(3)),
        ([2, 3, 5, 4, 6, 3], Window::same(3)),
        ([1, 70, 13, 9, 31, 3], Window::same(3)),
        ([2, 16, 25, 33, 16, 3], Window::same(3)),
        ([1, 130, 50, 8, 8, 3], Window::same(3)),
        ([2, 5, 7, 6, 5, 1], Window::same(1)),
        ([1, 4, 6, 5, 37, 5], Window::same(5)),
        ([1, 8, 200, 3, 4, 3], Window::same(3)),
        ([2, 6, 9, 8, 10, 3], Window::halving()),
        ([1, 3, 4, 7, 9, 3], Window::halving()),
        ([1, 3, 4, 11, 10, 3], uneven(1)),
        ([1, 3, 4, 11, 10, 3], uneven(2)),
        ([1, 3, 4, 11, 10, 3], uneven(3)),
    ]
}

#[test]
fn convolution_matches_its_definition_in_f64_at_odd_sizes() {
    for ([b, inputs, outputs, h, w, kernel], window) in cases() {
        let x = random(&[b, h, w, inputs], 1);
        let (weight, bias) = (random(&[outputs, inputs, kernel, kernel], 2), random(&[outputs], 3));
        let (want, out) = reference(&x, &weight, &bias, window);
        let weight = arranged(&weight);
        let y = forward(&x, &weight, &bias, window, None);
        assert_eq!(y.shape(), [b, out[0], out[1], outputs]);
        assert!(max_error(&y, &want) < 1e-6, "{:?} {window:?}: {:e}", x.shape(), max_error(&y, &want));

        let add = random(y.shape(), 4);
        let want: Vec<f64> = want.iter().zip(wide(&add)).map(|(y, a)| y + a).collect();
        assert!(max_error(&forward(&x, &weight, &bias, window, Some(&add)), &want) < 1e-6);
    }
}

#[test]
fn convolution_of_the_enlarged_image_matches_its_definition_in_f64() {
    for [b, inputs, outputs, h, w] in [[1, 1, 1, 1, 1], [2, 6, 12, 5, 7], [1, 3, 50, 8, 16], [1, 150, 7, 9, 33]] {
        let x = random(&[b, h, w, inputs], 1);
        let (weight, bias) = (random(&[outputs, inputs, 3, 3], 2), random(&[outputs], 3));
        let (want, out) = reference(&enlarged(&x), &weight, &bias, Window::same(3));
        let y = doubled(&x, &folded(&weight), &bias);
        assert_eq!(y.shape(), [b, out[0], out[1], outputs]);
        assert!(max_error(&y, &want) < 1e-6, "{:?}: {:e}", x.shape(), max_error(&y, &want));
    }
}

#[test]
fn half_precision_weights_convolve_as_their_values_say() {
    let (x, bias) = (random(&[2, 6, 7, 3], 2), random(&[5], 3));
    for dtype in [DType::F16, DType::Bf16] {
        let stored = rounded(&random(&[5, 3, 3, 3], 1), dtype);
        let widened = rounded(&stored, DType::F32);
        let run = |w: &Tensor| forward(&x, &arranged(w), &bias, Window::same(3), None);
        assert_eq!(bits(&run(&stored)), bits(&run(&widened)), "{dtype:?}");
        let run = |w: &Tensor| doubled(&x, &folded(w), &bias);
        assert_eq!(bits(&run(&stored)), bits(&run(&widened)), "{dtype:?}");
    }
}
