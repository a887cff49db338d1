//! The gradients on Hopper, in all their kernels. Rings of tiles wrap, and parts end within tiles.

use super::*;
use crate::ops::testing::on_vm;

const DIMS: [usize; 4] = [64, 80, 96, 128];
const HALVES: [DType; 2] = [DType::Bf16, DType::F16];

fn case(b: usize, tokens: &[usize], (count, d): (usize, usize), dtype: DType) -> Case {
    Case::new(b, tokens, (count, d), dtype, dtype)
}

#[test]
fn gradients_are_exact_across_tiles_and_parts_for_all_heads_there_are_kernels_for() {
    let mut cases = Vec::new();
    for (d, dtype) in DIMS.into_iter().flat_map(|d| HALVES.map(|t| (d, t))) {
        // In bf16 more steps of queries, and of 64 keys, than a ring has stages.
        let tokens: &[usize] = if dtype == DType::F16 { &[67, 9] } else { &[3, 200] };
        cases.push((case(1, tokens, (1, d), dtype), Mask::default(), true));
    }
    // As many parts as there may be, two samples, several heads, and heads narrower than the kernel.
    cases.push((case(2, &[5, 65, 1, 9], (2, 64), DType::Bf16), Mask::default(), true));
    cases.push((case(1, &[67], (2, 72), DType::Bf16), Mask::default(), true));
    check(&cases);
}

#[test]
fn all_ways_to_divide_the_work_give_gradients_as_exact() {
    let case = case(1, &[5, 137], (2, 64), DType::Bf16);
    let run = |device: &Device, variant: BackwardVariant| {
        let parts: Vec<_> = case.parts.iter().map(|p| p.each_ref().map(|t| t.to(device))).collect();
        let views: Vec<_> = parts.iter().map(|[q, k, v, _]| Part { q, k, v }).collect();
        let done = forward(&views, case.heads, Mask::default());
        let read = |(out, p)| Some(OutputGrad { out, dout: <[Tensor; 4]>::each_ref(p)[3] });
        let outputs: Vec<_> = done.out.iter().zip(&parts).map(read).collect();
        let grads = backward_by(variant, &outputs, &done.lse, &views, case.heads);
        let (q, kv): (Vec<_>, Vec<_>) = grads.into_iter().map(|g| (g.q.expect("one"), (g.k, g.v))).unzip();
        let (k, v) = kv.into_iter().unzip();
        vec![done.out.clone(), vec![done.lse.clone()], q, k, v]
    };
    for variant in backward_variants() {
        let got = on_vm(|device| run(device, *variant).into_iter().flatten().collect());
        let got: Vec<_> = [0..2, 2..3, 3..5, 5..7, 7..9].map(|of| got[of].to_vec()).into();
        case.check(Mask::default(), &[got.clone(), got]);
    }
}

#[test]
fn a_sample_s_gradients_on_hopper_do_not_depend_on_the_others() {
    for (d, dtype) in DIMS.into_iter().zip(HALVES.into_iter().cycle()) {
        let case = case(9, &[70, 9], (1, d), dtype);
        let device = Device::vm(ptxvm::Options::default()).unwrap();
        let all = case.run(&device, 0..9, Mask::default(), true);
        for i in [0, 8] {
            let alone = case.run(&device, i..i + 1, Mask::default(), true);
            for (all, alone) in all.iter().flatten().zip(alone.iter().flatten()) {
                let bytes = alone.to_raw();
                assert!(all.to_raw()[i * bytes.len()..][..bytes.len()] == bytes, "{}", case.name());
            }
        }
        device.check().unwrap();
    }
}

#[test]
fn a_part_that_nothing_reads_has_no_queries_on_hopper_either() {
    for (d, dtype) in DIMS.into_iter().zip(HALVES.into_iter().cycle()) {
        let case = case(1, &[66, 131], (1, d), dtype);
        let device = Device::vm(ptxvm::Options::default()).unwrap();
        let parts: Vec<_> = case.parts.iter().map(|p| p.each_ref().map(|t| t.to(&device))).collect();
        let views: Vec<_> = parts.iter().map(|[q, k, v, _]| Part { q, k, v }).collect();
        let done = forward(&views, case.heads, Mask::default());
        let zeros = cast(&Tensor::zeros(&device, views[0].q.shape()), dtype);
        let second = Some(OutputGrad { out: &done.out[1], dout: &parts[1][3] });
        let unread = backward(&[None, second], &done.lse, &views, case.heads);
        let zero = Some(OutputGrad { out: &done.out[0], dout: &zeros });
        let zero = backward(&[zero, second], &done.lse, &views, case.heads);
        assert!(unread[0].q.is_none());
        for (a, b) in unread.iter().zip(&zero) {
            assert!(a.k.to_raw() == b.k.to_raw() && a.v.to_raw() == b.v.to_raw(), "{}", case.name());
        }
        let none = backward(&[None, None], &done.lse, &views, case.heads);
        assert!(none.iter().all(|g| g.k.to_host().iter().chain(&g.v.to_host()).all(|g| *g == 0.0)));
        device.check().unwrap();
    }
}
