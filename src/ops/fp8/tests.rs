use super::*;
use crate::ops::activation::Activation;
use crate::ops::adaln::Chunk;
use crate::ops::copy;
use crate::ops::linear::rounded;
use crate::ops::testing::{bits, devices, on_vm, random, wide};

/// Numbers that bf16 holds.
fn some(shape: &[usize], seed: u64) -> Tensor {
    rounded(&rounded(&random(shape, seed), DType::Bf16), DType::F32)
}

/// What e4m3 stands for, times the scales.
fn decoded(rows: &Rows) -> Vec<f64> {
    let (numbers, scales) = (wide(&dequantise::forward(&rows.numbers)), wide(&rows.scales));
    numbers.iter().enumerate().map(|(i, v)| v * scales[i / rows.numbers.width()]).collect()
}

#[test]
fn every_number_becomes_the_nearest_there_is() {
    let all: Vec<u8> = (0..=255).filter(|b| b & 0x7F != 0x7F).collect();
    let values = {
        let t = Tensor::from_raw(&Device::Cpu, DType::Blocks(Blocks::F8E4M3), 1.0, &all, &[all.len()]);
        dequantise::forward(&t).to_host()
    };
    for (code, value) in all.iter().zip(&values) {
        assert_eq!(cpu::e4m3(*value), *code);
    }
    let mut positive: Vec<f32> = values.iter().copied().filter(|v| v.is_sign_positive()).collect();
    positive.sort_by(f32::total_cmp);
    for (i, pair) in positive.windows(2).enumerate() {
        let middle = 0.5 * (pair[0] + pair[1]);
        let even = if i % 2 == 0 { i } else { i + 1 };
        assert_eq!(usize::from(cpu::e4m3(middle)), even, "half way between {pair:?}");
        assert_eq!(usize::from(cpu::e4m3(middle.next_down())), i);
        assert_eq!(usize::from(cpu::e4m3(-middle.next_up())), 0x80 + i + 1);
    }
    assert_eq!([1e9, f32::INFINITY, -1e9, f32::NAN].map(cpu::e4m3), [0x7E, 0x7E, 0xFE, 0x7F]);
}

#[test]
fn rows_err_by_no_more_than_e4m3_rounds_and_kernels_give_the_cpu_s_bits() {
    let mut x = random(&[37, 272], 1);
    // Rows of zeros, of what is nearly nothing, of large and of wild numbers.
    let values = x.host_mut();
    values[..272].fill(0.0);
    values[272..544].iter_mut().for_each(|v| *v *= 1e-36);
    values[544..816].iter_mut().for_each(|v| *v *= 1e30);
    values[816..1088].iter_mut().enumerate().for_each(|(i, v)| *v *= 2f32.powi(-(i as i32 % 20)));
    values[1088] = f32::NAN;
    values[1360] = f32::INFINITY;
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let x = copy::cast(&x, dtype);
        let (cpu, original) = (quantise(&x), x.to_host());
        for (i, (got, want)) in
            decoded(&cpu).iter().zip(&original).enumerate().filter(|(i, _)| !(4..6).contains(&(i / 272)))
        {
            let largest = f64::from(original[i / 272 * 272..][..272].iter().fold(0.0f32, |m, v| m.max(v.abs())));
            let want = f64::from(*want);
            if !largest.is_finite() {
                continue;
            }
            // Half a step of 1/8 of the number, or of 2⁻⁹ where 448 is the largest; and f32 roundings of scales.
            let step = (want.abs() / 16.0).max(largest / 448.0 / 1024.0) * (1.0 + 1e-6) + 1e-30;
            assert!((got - want).abs() <= step, "{got} for {want}, {dtype:?}");
        }
        assert!(decoded(&cpu)[1088].is_nan() && decoded(&cpu)[1360].is_nan());
        let gpu = on_vm(|device| {
            let Rows { numbers, scales } = quantise(&x.to(device));
            vec![numbers.view(0, &[37, 272]), scales]
        });
        assert_eq!((bits(&gpu[0]), bits(&gpu[1])), (bits(&cpu.numbers), bits(&cpu.scales)), "{dtype:?}");
    }
}

/// A layer on `device`, with what may follow it.
struct Given {
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lora: Lora,
    residual: Tensor,
    modulation: Tensor,
}

impl Given {
    /// `samples` of `n` rows of `k` to `out`, with factors of `rank`.
    fn new([samples, n, k, out, rank]: [usize; 5]) -> Self {
        Self {
            x: some(&[samples, n, k], 1),
            weight: some(&[out, k], 2),
            bias: random(&[out], 3),
            lora: Lora { samples: 0..samples, a: some(&[rank, k], 4), b: some(&[out, rank], 5), scale: 0.25 },
            residual: some(&[samples, n, out], 6),
            modulation: some(&[samples, 3 * out], 7),
        }
    }

    /// Plain, with the additions, and with each kind of what follows.
    fn run(&self, device: &Device) -> Vec<Tensor> {
        let half = |t: &Tensor| copy::cast(&t.to(device), device.activations(DType::Bf16));
        let [x, residual, modulation] = [&self.x, &self.residual, &self.modulation].map(half);
        let (weight, bias) = (quantise(&self.weight.to(device)), self.bias.to(device));
        let lora = Lora { a: self.lora.a.to(device), b: self.lora.b.to(device), ..self.lora.clone() };
        let layer = Layer { weight: &weight, bias: Some(&bias), lora: Some(&lora) };
        let rows = quantise(&x);
        let gate = Chunk { modulation: &modulation, index: 1 };
        let of = |then| forward(&x, &rows, layer, then);
        let mut all = vec![
            forward(&x, &rows, Layer { bias: None, lora: None, ..layer }, Then::Nothing),
            of(Then::Nothing),
            of(Then::Add(&residual)),
            of(Then::AddGated { residual: &residual, gate }),
        ];
        let kinds = [Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu, Activation::Silu];
        all.extend(kinds.map(|kind| of(Then::Activate(kind))));
        all
    }
}

/// Below, at and off the edges of tiles, stages and rings; several tiles a block.
const SIZES: [[usize; 5]; 4] = [[1, 1, 16, 8, 1], [2, 65, 144, 136, 5], [1, 128, 640, 128, 64], [2, 70, 784, 72, 70]];

#[test]
fn kernels_agree_with_the_cpu_and_both_err_as_rounding_to_e4m3_says() {
    let given = SIZES.map(Given::new);
    let cpu = given.each_ref().map(|g| g.run(&Device::Cpu));
    let gpu = on_vm(|device| given.iter().flat_map(|g| g.run(device)).collect());
    for ((g, cpu), gpu) in given.iter().zip(&cpu).zip(gpu.chunks(cpu[0].len())) {
        let (k, out, rank) = (g.x.width(), g.weight.dim(0), g.lora.a.dim(0));
        let [x, w, a, b, bias] = [&g.x, &g.weight, &g.lora.a, &g.lora.b, &g.bias].map(wide);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let largest = |v: &[f64]| v.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let (plain, added) = (wide(&cpu[0]), wide(&cpu[1]));
        let down: Vec<f64> = x.chunks(k).flat_map(|x| a.chunks(k).map(move |a| 0.25 * dot(x, a))).collect();
        let mut sizes = vec![0.0; g.x.rows() * out];
        for (at, of_low) in sizes.iter_mut().enumerate() {
            let (xs, ws) = (&x[at / out * k..][..k], &w[at % out * k..][..k]);
            let exact = dot(xs, ws);
            // Both operands are off by half an eighth, or by half the least step where that is more.
            let off = |v: f64, most: f64| (v.abs() / 16.0).max(most / 448.0 / 1024.0);
            let (most_x, most_w) = (largest(xs), largest(ws));
            let bound: f64 = (xs.iter().zip(ws))
                .map(|(x, w)| {
                    let (dx, dw) = (off(*x, most_x), off(*w, most_w));
                    x.abs() * dw + dx * w.abs() + dx * dw
                })
                .sum();
            let got = plain[at];
            assert!((got - exact).abs() <= bound * 1.00001, "{got} for {exact}, {:?}", g.x);
            let (down, up) = (&down[at / out * rank..][..rank], &b[at % out * rank..][..rank]);
            let size: f64 = down.iter().zip(up).map(|(d, u)| (d * u).abs()).sum();
            *of_low = size;
            let (got, want) = (added[at], plain[at] + dot(down, up) + bias[at % out]);
            // Sums of k and of rank steps in f32.
            assert!(
                (got - want).abs() <= 1e-5 * (1.0 + (k as f64).sqrt() + size + want.abs()),
                "{got} for {want} with additions"
            );
        }
        if k > 500 {
            // Normal numbers rounded to 4 bits are off by (1/8)/√12 of their power of two, 2.4% of their root mean square; products
            // of two by √2 times that.
            let dot = |at: usize| dot(&x[at / out * k..][..k], &w[at % out * k..][..k]);
            let exact: Vec<f64> = (0..g.x.rows() * out).map(dot).collect();
            let error: f64 = exact.iter().zip(wide(&cpu[0])).map(|(e, v)| (e - v).powi(2)).sum();
            let relative = (error / exact.iter().map(|e| e * e).sum::<f64>()).sqrt();
            println!("fp8 products of {k} steps err by {relative:.4} of their root mean square");
            assert!((0.027..0.04).contains(&relative), "{relative}");
        }
        // Sums in f32 in another order; x·Aᵀ and the result are rounded to bf16, by 2⁻⁸ at most. Activations are no steeper than
        // 1.13 (their derivative's maximum).
        for (i, (gpu, cpu)) in gpu.iter().zip(cpu).enumerate() {
            let gate = g.modulation.to_host().iter().fold(1.13f32, |m, v| m.max(v.abs()));
            let (low, steep) = (if i == 0 { 0.0 } else { 2f64.powi(-8) }, if i == 3 { f64::from(gate) } else { 1.13 });
            for ((gpu, cpu), size) in wide(gpu).iter().zip(wide(cpu)).zip(&sizes) {
                let bound = steep * (low * size + 1e-5 * (1.0 + size + (k as f64).sqrt())) + cpu.abs() * 2f64.powi(-8);
                assert!((gpu - cpu).abs() <= bound, "{gpu} against {cpu}, kind {i} of {:?}", g.x);
            }
        }
    }
}

#[test]
fn a_sample_has_the_same_bits_alone_and_among_nine() {
    let g = Given::new([9, 29, 272, 136, 4]);
    for device in devices() {
        let whole = g.run(&device);
        for i in [0, 4, 8] {
            let one = |t: &Tensor| copy::owned(&t.slice(i..i + 1));
            let alone = Given {
                x: one(&g.x),
                residual: one(&g.residual),
                modulation: one(&g.modulation),
                weight: g.weight.clone(),
                bias: g.bias.clone(),
                lora: Lora { samples: 0..1, ..g.lora.clone() },
            };
            for (whole, alone) in whole.iter().zip(alone.run(&device)) {
                assert_eq!(bits(&whole.slice(i..i + 1)), bits(&alone), "sample {i} on {device:?}");
            }
        }
        device.check().unwrap();
    }
}

#[test]
fn a_device_without_fp8_says_what_it_lacks() {
    let portable = Device::vm_of(crate::device::gpu::PORTABLE, ptxvm::Options::default()).unwrap();
    let e = check(&portable, DType::Bf16).unwrap_err().to_string();
    assert!(
        e.starts_with("fp8 weights need the fp8 tensor cores of compute capability 9.0")
            && e.ends_with("this GPU has 8.0"),
        "{e}"
    );
    let [cpu, hopper] = devices();
    check(&cpu, DType::F32).unwrap();
    check(&hopper, DType::Bf16).unwrap();
    let e = check(&hopper, DType::F32).unwrap_err().to_string();
    assert!(e.ends_with("need activations in bf16, and these are in f32; set train.compute = \"bf16\""), "{e}");
}
