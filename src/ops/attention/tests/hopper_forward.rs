//! The forward on Hopper, in all its kernels. Rings of keys wrap, blocks have several tiles, groups of queries are of different
//! parts or have none, and parts end within tiles.

use super::*;
use crate::ops::testing::on_vm;

const HALVES: [DType; 2] = [DType::Bf16, DType::F16];

fn case(b: usize, tokens: &[usize], (count, d): (usize, usize), dtype: DType) -> Case {
    Case::new(b, tokens, (count, d), dtype, dtype)
}

#[test]
fn heads_of_every_width_are_as_exact_as_their_operands() {
    let plain = |case| (case, Mask::default(), false);
    let mut cases: Vec<_> = [8, 24, 40, 64, 72, 80, 88, 96, 104, 120, 128]
        .into_iter()
        .zip(HALVES.into_iter().cycle())
        .map(|(d, dtype)| plain(case(1, if d == 64 { &[129, 40] } else { &[70, 3] }, (1, d), dtype)))
        .collect();
    // More tiles than blocks; keys of more stages than there are; all parts there may be.
    for dtype in HALVES {
        cases.push(plain(case(1, &[300, 129], (2, 64), dtype)));
        cases.push(plain(case(2, &[1, 65, 64, 128], (1, 80), dtype)));
    }
    // Results of f32.
    cases.extend([64, 80, 120].map(|d| plain(Case::new(1, &[70, 3], (2, d), DType::F32, DType::Bf16))));
    check(&cases);
}

#[test]
fn masks_leave_what_they_should_across_tiles() {
    let sizes = [(200, (2, 64)), (129, (1, 24)), (70, (1, 80)), (135, (1, 128))];
    let sizes = sizes.map(|(n, heads)| (n, heads, random(&[heads.0, n, n], 9)));
    let mut cases = Vec::new();
    for ((n, heads, bias), dtype) in sizes.iter().zip(HALVES.into_iter().cycle()) {
        for (causal, bias) in [(true, None), (false, Some(bias)), (true, Some(bias))] {
            cases.push((case(1, &[*n], *heads, dtype), Mask { causal, bias }, false));
        }
    }
    // A tile of queries does not go to keys that it may not see, which are of the third and fourth stage here.
    cases.push((case(1, &[400], (1, 64), DType::Bf16), Mask { causal: true, bias: None }, false));
    check(&cases);
}

#[test]
fn all_ways_to_divide_the_work_give_the_same_bits() {
    for width in [64, 128] {
        let case = case(1, &[150, 3, 70], (2, width), DType::Bf16);
        let variants: Vec<_> = forward_variants().into_iter().filter(|v| v.width as usize == width).collect();
        assert!(variants.len() > 1);
        let got = on_vm(|device| {
            let parts: Vec<_> = case.parts.iter().map(|p| p.each_ref().map(|t| t.to(device))).collect();
            let views: Vec<_> = parts.iter().map(|[q, k, v, _]| Part { q, k, v }).collect();
            let of = |variant: &ForwardVariant| {
                let done = forward_by(*variant, &views, case.heads);
                done.out.into_iter().chain([done.lse])
            };
            variants.iter().flat_map(of).collect()
        });
        let each: Vec<Vec<_>> = got.chunks(4).map(|c| c.iter().map(Tensor::to_raw).collect()).collect();
        for (variant, bits) in variants.iter().zip(&each) {
            assert!(*bits == each[0], "{variant:?} differs from {:?}", variants[0]);
        }
    }
}

#[test]
fn a_sample_s_bits_do_not_depend_on_the_others_for_any_kernel() {
    let bias = random(&[1, 70, 70], 3);
    let plain = [64, 80, 96, 128].map(|d| (d, &[70, 3][..], Mask::default()));
    let masked = [64, 128].map(|d| (d, &[70][..], Mask { causal: true, bias: Some(&bias) }));
    for ((d, tokens, mask), dtype) in plain.into_iter().chain(masked).zip(HALVES.into_iter().cycle()) {
        let case = case(9, tokens, (1, d), dtype);
        let device = Device::vm(ptxvm::Options::default()).unwrap();
        let bias = mask.bias.map(|b| b.to(&device));
        let mask = Mask { bias: bias.as_ref(), ..mask };
        let all = case.run(&device, 0..9, mask, false);
        for i in [0, 5, 8] {
            let alone = case.run(&device, i..i + 1, mask, false);
            for (all, alone) in all.iter().flatten().zip(alone.iter().flatten()) {
                let bytes = alone.to_raw();
                assert!(all.to_raw()[i * bytes.len()..][..bytes.len()] == bytes, "{}", case.name());
            }
        }
        device.check().unwrap();
    }
}
