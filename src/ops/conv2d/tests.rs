use super::*;
use crate::device::with_threads;
use crate::ops::testing::{max_error, random, random_weight};

/// The convolution in f64, straight from its definition.
fn reference(x: &Tensor, w: &Weight, bias: &Weight, window: Window) -> (Vec<f64>, [usize; 2]) {
    let ([left, right, top, bottom], s) = (window.padding, window.stride);
    let (channels, h, wide) = (x.dim(1), x.dim(2), x.dim(3));
    let (kh, kw) = (w.dim(2), w.dim(3));
    let out = [(h + top + bottom - kh) / s + 1, (wide + left + right - kw) / s + 1];
    let mut y = Vec::new();
    for b in 0..x.dim(0) {
        for o in 0..w.dim(0) {
            for i in 0..out[0] {
                for j in 0..out[1] {
                    let mut sum = f64::from(bias.elems().get(o));
                    for c in 0..channels {
                        for u in 0..kh {
                            for v in 0..kw {
                                let (row, col) = ((i * s + u).wrapping_sub(top), (j * s + v).wrapping_sub(left));
                                if row < h && col < wide {
                                    let pixel = x.data()[((b * channels + c) * h + row) * wide + col];
                                    let weight = w.elems().get(((o * channels + c) * kh + u) * kw + v);
                                    sum += f64::from(pixel) * f64::from(weight);
                                }
                            }
                        }
                    }
                    y.push(sum);
                }
            }
        }
    }
    (y, out)
}

/// Every pixel twice in both directions.
fn enlarged(x: &Tensor) -> Tensor {
    let (h, w) = (x.dim(2), x.dim(3));
    let mut y = Tensor::scratch(&[x.dim(0), x.dim(1), 2 * h, 2 * w]);
    for (i, y) in y.data_mut().iter_mut().enumerate() {
        let (plane, row, column) = (i / (4 * h * w), i / (2 * w) % (2 * h), i % (2 * w));
        *y = x.data()[(plane * h + row / 2) * w + column / 2];
    }
    y
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
        let x = random(&[b, inputs, h, w], 1);
        let (weight, bias) = (random_weight(&[outputs, inputs, kernel, kernel], 2), random_weight(&[outputs], 3));
        let (want, out) = reference(&x, &weight, &bias, window);
        let y = forward(&x, &weight, Some(&bias), window, None);
        assert_eq!(y.shape(), [b, outputs, out[0], out[1]]);
        assert!(max_error(&y, &want) < 1e-6, "{:?} {window:?}: {:e}", x.shape(), max_error(&y, &want));

        let add = random(y.shape(), 4);
        let want: Vec<f64> = want.iter().zip(add.data()).map(|(y, a)| y + f64::from(*a)).collect();
        assert!(max_error(&forward(&x, &weight, Some(&bias), window, Some(&add)), &want) < 1e-6);
    }
}

#[test]
fn convolution_of_the_enlarged_image_matches_its_definition_in_f64() {
    for [b, inputs, outputs, h, w] in [[1, 1, 1, 1, 1], [2, 6, 12, 5, 7], [1, 3, 50, 8, 16], [1, 150, 7, 9, 33]] {
        let x = random(&[b, inputs, h, w], 1);
        let (weight, bias) = (random_weight(&[outputs, inputs, 3, 3], 2), random_weight(&[outputs], 3));
        let (want, out) = reference(&enlarged(&x), &weight, &bias, Window::same(3));
        let y = doubled(&x, &weight, Some(&bias));
        assert_eq!(y.shape(), [b, outputs, out[0], out[1]]);
        assert!(max_error(&y, &want) < 1e-6, "{:?}: {:e}", x.shape(), max_error(&y, &want));
    }
}

#[test]
fn half_precision_weights_convolve_as_their_values_say() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<half::bf16> = random(&[5 * 3 * 9], 1).data().iter().map(|v| half::bf16::from_f32(*v)).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(folder.path().join("w"), &bytes).unwrap();
    let file = std::fs::File::open(folder.path().join("w")).unwrap();
    // SAFETY: nobody else has the file.
    let file = std::sync::Arc::new(unsafe { memmap2::Mmap::map(&file) }.unwrap());
    let shape = vec![5, 3, 3, 3];
    let stored = Weight::mapped(file, 0..bytes.len(), crate::device::DType::Bf16, shape.clone());
    let widened = Weight::owned(values.iter().map(|v| v.to_f32()).collect(), shape);
    let x = random(&[2, 3, 6, 7], 2);
    let run = |w: &Weight| forward(&x, w, None, Window::same(3), None);
    assert_eq!(run(&stored).data(), run(&widened).data());
}

#[test]
fn an_image_alone_and_in_a_batch_of_nine_gives_the_same_bits_for_any_number_of_threads() {
    let x = random(&[9, 70, 24, 20], 1);
    let (weight, bias) = (random_weight(&[52, 70, 3, 3], 2), random_weight(&[52], 3));
    let same = |x: &Tensor| forward(x, &weight, Some(&bias), Window::same(3), None);
    let halved = |x: &Tensor| forward(x, &weight, Some(&bias), Window::halving(), None);
    let enlarged = |x: &Tensor| doubled(x, &weight, Some(&bias));
    for op in [&same as &(dyn Fn(&Tensor) -> Tensor + Sync), &halved, &enlarged] {
        let run = |threads: usize, images: std::ops::Range<usize>| {
            let y = with_threads(threads, || op(&x.slice(images))).unwrap();
            y.data().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let whole = run(1, 0..9);
        assert_eq!(whole, run(2, 0..9));
        assert_eq!(whole, run(3, 0..9));
        for i in 0..9 {
            assert_eq!(whole[i * whole.len() / 9..(i + 1) * whole.len() / 9], run(2, i..i + 1));
        }
    }
}

#[test]
fn the_portable_tile_gives_the_bits_of_the_wide_one() {
    let (x, weight, bias) = (random(&[3000], 1), random(&[12 * 20], 2), random(&[12], 3));
    let offsets: Vec<usize> = (0..20).map(|i| i * 131).collect();
    let span = tile::Span { first: 0, start: [3, 15], keep: [0b1111_0011_1111_1111, 0b0000_0000_1111_1010] };
    let add = random(&[12, 40], 4);
    let run = |portable: bool| {
        let mut y = Tensor::zeros(&[12, 40]);
        let whole = tile::Tile {
            input: x.data().as_ptr(),
            offsets: &offsets,
            weight: weight.data().as_ptr(),
            weight_stride: 20,
            bias: bias.data().as_ptr(),
            add: add.data().as_ptr(),
            out: y.data_mut().as_mut_ptr(),
            out_stride: 40,
            span,
        };
        // SAFETY: offsets end below 3000 - 32, kept windows below 40, 12 rows everywhere.
        unsafe { if portable { tile::portable::<12>(whole) } else { tile::run(12, whole) } };
        y.data().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(run(true), run(false));
}
