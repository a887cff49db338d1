use super::*;
use crate::device::{DType, Device};
use crate::ops::linear::rounded;
use crate::ops::testing::{all_devices, bits, check_gradient, check_precision, max_error, on_vm, random, wide};

/// The convolution in f64, straight from its definition; the weight as files have it.
fn reference(x: &Tensor, w: &Tensor, bias: &Tensor, window: Window) -> (Vec<f64>, [usize; 2]) {
    reference_of(&wide(x), x.shape(), w, bias, window)
}

/// The same of an image of f64.
fn reference_of(x: &[f64], shape: &[usize], w: &Tensor, bias: &Tensor, window: Window) -> (Vec<f64>, [usize; 2]) {
    let ([left, right, top, bottom], s) = (window.padding, window.stride);
    let &[b, h, width, channels] = shape else { panic!("four axes") };
    let &[outputs, _, kh, kw] = w.shape() else { panic!("four axes") };
    let out = [(h + top + bottom - kh) / s + 1, (width + left + right - kw) / s + 1];
    let (w, bias) = (wide(w), wide(bias));
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
    Tensor::from_slice(&x.device(), &twice(x.host(), x.shape()), &[b, 2 * h, 2 * w, channels])
}

fn twice<T: Copy>(x: &[T], shape: &[usize]) -> Vec<T> {
    let &[b, h, w, channels] = shape else { panic!("four axes") };
    indices([b, 2 * h, 2 * w, channels]).map(|(b, i, j, c)| x[((b * h + i / 2) * w + j / 2) * channels + c]).collect()
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
        let add = random(&[b, out[0], out[1], outputs], 4);
        let added: Vec<f64> = want.iter().zip(wide(&add)).map(|(y, a)| y + a).collect();
        for device in all_devices() {
            let (x, bias, add, weight) =
                (x.to(&device), bias.to(&device), add.to(&device), arranged(&weight.to(&device)));
            let y = forward(&x, &weight, &bias, window, None);
            assert_eq!(y.shape(), [b, out[0], out[1], outputs]);
            assert!(max_error(&y, &want) < 1e-6, "{:?} {window:?}: {:e}", x.shape(), max_error(&y, &want));
            assert!(max_error(&forward(&x, &weight, &bias, window, Some(&add)), &added) < 1e-6);
        }
    }
}

#[test]
fn convolution_of_the_enlarged_image_matches_its_definition_in_f64() {
    for [b, inputs, outputs, h, w] in [[1, 1, 1, 1, 1], [2, 6, 12, 5, 7], [1, 3, 50, 8, 16], [1, 150, 7, 9, 33]] {
        let x = random(&[b, h, w, inputs], 1);
        let (weight, bias) = (random(&[outputs, inputs, 3, 3], 2), random(&[outputs], 3));
        let (want, out) = reference(&enlarged(&x), &weight, &bias, Window::same(3));
        for device in all_devices() {
            let y = doubled(&x.to(&device), &folded(&weight.to(&device)), &bias.to(&device));
            assert_eq!(y.shape(), [b, out[0], out[1], outputs]);
            assert!(max_error(&y, &want) < 1e-6, "{:?}: {:e}", x.shape(), max_error(&y, &want));
        }
    }
}

#[test]
fn weights_are_put_in_order_bit_by_bit() {
    for (dtype, [outputs, inputs]) in [(DType::F32, [3, 5]), (DType::F16, [7, 2]), (DType::Bf16, [9, 33])] {
        let w = rounded(&random(&[outputs, inputs, 3, 3], 1), dtype);
        for order in [arranged, folded, turned, turned_folded] {
            let got = on_vm(|device| vec![order(&w.to(device))]);
            assert_eq!(bits(&got[0]), bits(&order(&w)), "{dtype:?}");
        }
    }
}

#[test]
fn kernels_give_the_cpu_s_bits_in_single_precision() {
    // Chains that are cut, window rows that are not whole tiles, several tiles of windows and of channels.
    for ([b, inputs, outputs, h, w, kernel], window) in [
        ([2, 90, 17, 9, 9, 3], Window::same(3)),
        ([1, 12, 65, 12, 11, 3], Window::halving()),
        ([1, 300, 3, 3, 4, 1], Window::same(1)),
    ] {
        let (x, bias) = (random(&[b, h, w, inputs], 1), random(&[outputs], 3));
        let weight = arranged(&random(&[outputs, inputs, kernel, kernel], 2));
        let plain = forward(&x, &weight, &bias, window, None);
        let add = random(plain.shape(), 4);
        let added = forward(&x, &weight, &bias, window, Some(&add));
        let got = on_vm(|device| {
            let (x, w, bias, add) = (x.to(device), weight.to(device), bias.to(device), add.to(device));
            vec![forward(&x, &w, &bias, window, None), forward(&x, &w, &bias, window, Some(&add))]
        });
        assert_eq!([bits(&got[0]), bits(&got[1])], [bits(&plain), bits(&added)], "{inputs} to {outputs}, {window:?}");
    }
    let (x, bias, w) = (random(&[2, 5, 7, 20], 1), random(&[18], 3), folded(&random(&[18, 20, 3, 3], 2)));
    let got = on_vm(|device| vec![doubled(&x.to(device), &w.to(device), &bias.to(device))]);
    assert_eq!(bits(&got[0]), bits(&doubled(&x, &w, &bias)));
}

#[test]
fn half_precision_kernels_err_as_little_as_single_precision_and_give_an_image_the_same_bits_in_any_batch() {
    use DType::{Bf16, F16, F32};
    // Of the image and of the weight; what both are multiplied in comes third.
    let types =
        [(F16, F16, F16), (Bf16, Bf16, Bf16), (F32, F16, F16), (F32, Bf16, Bf16), (Bf16, F16, Bf16), (F16, F32, F16)];
    // What many channels go through, by turns; what few and ragged ones go through.
    let many = [([9, 16, 40, 5, 5, 3], Window::same(3)), ([9, 40, 130, 4, 4, 1], Window::halving())];
    let few =
        [([9, 24, 3, 4, 3, 3], Window::same(3)), ([9, 13, 34, 4, 5, 3], Window { stride: 2, padding: [2, 1, 0, 2] })];
    let by_turns = types.into_iter().enumerate().map(|(i, types)| (many[i % 2], types));
    let all = few.into_iter().flat_map(|size| types.map(|types| (size, types)));
    for (([b, inputs, outputs, h, w, kernel], window), (of_x, of_w, of_both)) in by_turns.chain(all) {
        let x = rounded(&random(&[b, h, w, inputs], 1), of_x);
        let (weight, bias) = (rounded(&random(&[outputs, inputs, kernel, kernel], 2), of_w), random(&[outputs], 3));
        let single = |t: &Tensor| rounded(&rounded(t, of_both), F32);
        let (x32, w32) = (single(&x), single(&weight));
        let plain = forward(&x32, &arranged(&w32), &bias, window, None);
        let add = rounded(&random(plain.shape(), 4), of_x);
        let cpu = forward(&x32, &arranged(&w32), &bias, window, Some(&rounded(&add, F32)));

        let run = |device: &Device, images: std::ops::Range<usize>| {
            let (x, add) = (x.slice(images.clone()).to(device), add.slice(images).to(device));
            let (w, bias) = (arranged(&weight.to(device)), bias.to(device));
            vec![forward(&x, &w, &bias, window, None), forward(&x, &w, &bias, window, Some(&add))]
        };
        let got = on_vm(|device| [run(device, 0..b), run(device, 4..5)].concat());
        let name = format!("{inputs} to {outputs}, {of_x:?} and {of_w:?}");
        for (whole, alone) in got[..2].iter().zip(&got[2..]) {
            assert_eq!(bits(&whole.slice(4..5)), bits(alone), "{name}");
        }
        let (want, _) = reference(&x32, &w32, &bias, window);
        check_precision(&name, &got[0], &plain, &want);
        let want: Vec<f64> = want.iter().zip(wide(&add)).map(|(y, a)| y + a).collect();
        check_precision(&format!("{name}, added"), &got[1], &cpu, &want);
    }
    for (inputs, outputs, dtype) in [(16, 33, Bf16), (5, 3, F16)] {
        let x = rounded(&random(&[2, 5, 7, inputs], 1), dtype);
        let (w, bias) = (folded(&random(&[outputs, inputs, 3, 3], 2)), random(&[outputs], 3));
        let got = on_vm(|device| vec![doubled(&x.to(device), &w.to(device), &bias.to(device))]);
        let cpu = doubled(&rounded(&x, F32), &rounded(&rounded(&w, dtype), F32), &bias);
        check_precision(&format!("doubled, {inputs} to {outputs}"), &got[0], &cpu, &wide(&cpu));
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

#[test]
fn tiles_of_every_form_give_the_same_bits_and_err_as_little_as_single_precision() {
    let shifted = Window { stride: 2, padding: [2, 1, 0, 2] };
    for ([b, inputs, outputs, h, w, kernel], window, dtype) in [
        // Windows and channels off and at the edges of tiles; one step of the sum, and a ring that wraps.
        ([2, 8, 40, 5, 7, 1], Window::same(1), DType::F16),
        ([1, 72, 136, 5, 17, 3], Window::same(3), DType::Bf16),
        ([1, 8, 256, 16, 16, 3], Window::same(3), DType::F16),
        ([1, 16, 264, 13, 20, 3], Window::halving(), DType::Bf16),
        ([2, 24, 48, 8, 35, 3], shifted, DType::F16),
    ] {
        let single = |t: &Tensor| rounded(&rounded(t, dtype), DType::F32);
        let (x, bias) = (single(&random(&[b, h, w, inputs], 1)), random(&[outputs], 3));
        let weight = single(&random(&[outputs, inputs, kernel, kernel], 2));
        let plain = forward(&x, &arranged(&weight), &bias, window, None);
        let add = single(&random(plain.shape(), 4));
        let cpu = forward(&x, &arranged(&weight), &bias, window, Some(&add));
        let got = on_vm(|device| {
            let [x, w, add] = [&x, &arranged(&weight), &add].map(|t| rounded(t, dtype).to(device));
            let (w, bias) = (w.to(device), bias.to(device));
            let of = |add| in_every_form(&x, &w, &bias, Some(window), add);
            [of(None), of(Some(&add))].concat()
        });
        let name = format!("{inputs} to {outputs}, {window:?}, {dtype:?}");
        for i in 1..3 {
            assert_eq!([bits(&got[i]), bits(&got[3 + i])], [bits(&got[0]), bits(&got[3])], "{name}");
        }
        let (want, _) = reference(&x, &weight, &bias, window);
        check_precision(&name, &got[0], &plain, &want);
        let want: Vec<f64> = want.iter().zip(wide(&add)).map(|(y, a)| y + a).collect();
        check_precision(&format!("{name}, added"), &got[3], &cpu, &want);
    }
    let (x, bias, dtype) = (random(&[1, 5, 17, 24], 1), random(&[40], 3), DType::Bf16);
    let (x, w) = (rounded(&x, dtype), rounded(&folded(&random(&[40, 24, 3, 3], 2)), dtype));
    let got = on_vm(|device| in_every_form(&x.to(device), &w.to(device), &bias.to(device), None, None));
    let cpu = doubled(&rounded(&x, DType::F32), &rounded(&w, DType::F32), &bias);
    check_precision("doubled", &got[0], &cpu, &wide(&cpu));
    assert_eq!([bits(&got[1]), bits(&got[2])], [bits(&got[0]), bits(&got[0])]);
}

#[test]
fn the_gradient_to_the_image_matches_finite_differences() {
    for [b, inputs, outputs, h, w, kernel] in
        [[1, 1, 1, 1, 1, 3], [2, 3, 5, 4, 6, 3], [1, 5, 2, 7, 3, 1], [1, 2, 3, 5, 4, 5]]
    {
        let (x, dy) = (random(&[b, h, w, inputs], 1), random(&[b, h, w, outputs], 2));
        let (weight, bias) = (random(&[outputs, inputs, kernel, kernel], 3), random(&[outputs], 4));
        for device in all_devices() {
            let (dy_there, turned) = (dy.to(&device), turned(&weight.to(&device)));
            let dx = backward(&dy_there, &turned, None);
            let y = |x: &[f64]| reference_of(x, &[b, h, w, inputs], &weight, &bias, Window::same(kernel)).0;
            check_gradient(&dx, &wide(&x), &dy, y);
            let added = backward(&dy_there, &turned, Some(&x.to(&device)));
            let sums = dx.to_host().into_iter().zip(x.host()).map(|(d, x)| d + x);
            assert!(added.to_host().into_iter().eq(sums), "added on {device:?}");
        }
    }
}

#[test]
fn the_gradient_to_the_image_that_is_enlarged_matches_finite_differences() {
    for [b, inputs, outputs, h, w] in [[1, 1, 1, 1, 1], [2, 3, 4, 2, 3], [1, 2, 3, 5, 4]] {
        let (x, dy) = (random(&[b, h, w, inputs], 1), random(&[b, 2 * h, 2 * w, outputs], 2));
        let (weight, bias) = (random(&[outputs, inputs, 3, 3], 3), random(&[outputs], 4));
        let (small, large) = ([b, h, w, inputs], [b, 2 * h, 2 * w, inputs]);
        let y = |x: &[f64]| reference_of(&twice(x, &small), &large, &weight, &bias, Window::same(3)).0;
        for device in all_devices() {
            let dx = doubled_backward(&dy.to(&device), &turned_folded(&weight.to(&device)));
            check_gradient(&dx, &wide(&x), &dy, y);
        }
    }
}

#[test]
fn gradients_in_half_precision_err_as_little_as_single_precision() {
    for (inputs, outputs, dtype) in [(16, 40, DType::Bf16), (40, 16, DType::F16), (5, 3, DType::Bf16)] {
        let of = |shape: &[usize], seed| rounded(&random(shape, seed), dtype);
        let (weight, dy) = (of(&[outputs, inputs, 3, 3], 1), of(&[2, 6, 10, outputs], 2));
        let got = on_vm(|device| {
            let (dy, w) = (dy.to(device), weight.to(device));
            vec![backward(&dy, &turned(&w), None), doubled_backward(&dy, &rounded(&turned_folded(&w), dtype))]
        });
        let (dy, w) = (rounded(&dy, DType::F32), rounded(&weight, DType::F32));
        let folded = rounded(&rounded(&turned_folded(&w), dtype), DType::F32);
        for (got, cpu) in got.iter().zip([backward(&dy, &turned(&w), None), doubled_backward(&dy, &folded)]) {
            check_precision(&format!("{inputs} from {outputs}, {dtype:?}"), got, &cpu, &wide(&cpu));
        }
    }
}
