use super::*;
use crate::device::gpu::{HOPPER, PORTABLE};
use crate::ops::testing::{all_devices, on_vm_of};

const EPS: f32 = 1e-6;

/// Inputs of three sizes with what they go through: products of every kind, some of one input.
struct Group {
    x: Vec<Tensor>,
    /// Which input, `W`, bias, factors.
    layers: Vec<(usize, Tensor, Tensor, Vec<Lora>)>,
    /// Shaped as the results.
    like: Vec<Tensor>,
    modulation: Tensor,
    head: Tensor,
}

impl Group {
    fn new(device: &Device, activations: DType, weights: DType) -> Self {
        let put = |shape: &[usize], seed, dtype| rounded(&random(shape, seed), dtype).to(device);
        let x: Vec<Tensor> = [70, 7, 19].map(|n| put(&[3, n, 72], n as u64, activations)).into();
        let layer = |i: usize| {
            let (of, out) = (i / 3, [320, 64, 320, 64, 320, 64, 264][i]);
            let seed = 100 * i as u64;
            let lora = |samples, rank: usize, seed: u64| {
                let (a, b) = (put(&[rank, 72], seed, DType::F32), put(&[out, rank], seed + 1, DType::F32));
                Lora { samples, a, b, scale: 0.5 }
            };
            let lora = if i == 4 { Vec::new() } else { vec![lora(0..1, 4, seed), lora(2..3, 40, seed + 2)] };
            (of, put(&[out, 72], seed + 4, weights), put(&[out], seed + 5, DType::F32), lora)
        };
        let layers: Vec<_> = (0..7).map(layer).collect();
        let like = layers.iter().map(|(of, w, ..)| put(&[3, x[*of].dim(1), w.dim(0)], 8, activations)).collect();
        let (modulation, head) = (put(&[3, 2 * 264], 9, activations), put(&[64], 10, DType::F32));
        Self { x, layers, like, modulation, head }
    }

    fn calls(&self) -> Vec<Call<'_>> {
        let normalise = Then::Normalise { weight: &self.head, eps: EPS };
        let gelu = Then::Activate(Activation::GeluTanh);
        let gate = Chunk { modulation: &self.modulation, index: 1 };
        let gated = Then::AddGated { residual: &self.like[6], gate };
        let then = [normalise, normalise, Then::Nothing, gelu, gelu, Then::Add(&self.like[5]), gated];
        let kept = [3, 2, 0, 1, 3, 0, 0];
        let calls = self.layers.iter().zip(then).zip(kept).map(|(((of, weight, bias, lora), then), kept)| Call {
            x: &self.x[*of],
            layer: Adapted { layer: Layer { weight, bias: Some(bias) }, lora },
            then,
            kept,
        });
        calls.collect()
    }
}

/// Those that a device takes.
fn types(device: &Device) -> impl Iterator<Item = [DType; 4]> {
    let on_cpu = matches!(device, Device::Cpu);
    TYPES.into_iter().filter(move |[activations, ..]| !on_cpu || *activations == DType::F32)
}

fn all_of(outputs: Vec<Output>) -> Vec<Vec<u8>> {
    let each = |o: Output| [Some(o.y), Some(o.hidden), o.inverse_rms];
    outputs.into_iter().flat_map(each).flatten().map(|t| bits(&t)).collect()
}

#[test]
fn a_group_gives_the_bits_of_its_products_alone() {
    for device in all_devices() {
        for [activations, weights, ..] in types(&device) {
            let group = Group::new(&device, activations, weights);
            let calls = group.calls();
            let alone: Vec<_> = calls.iter().flat_map(|call| all_of(forward_group(&[*call]))).collect();
            assert!(all_of(forward_group(&calls)) == alone, "{activations:?} by {weights:?} on {device:?}");
        }
        device.check().unwrap();
    }
}

#[test]
fn heads_are_normalised_as_they_are_stored_and_what_is_kept_gives_them_again() {
    for device in all_devices() {
        for [activations, weights, ..] in types(&device) {
            let group = Group::new(&device, activations, weights);
            let call = group.calls()[0];
            let [plain] = each([Call { then: Then::Nothing, kept: 0, ..call }]);
            let want = rms_norm::forward(&plain.y, &group.head, EPS);
            for kept in 0..=3 {
                let [Output { y, hidden, inverse_rms }] = each([Call { kept, ..call }]);
                let inverse = inverse_rms.unwrap();
                let name = format!("{activations:?} by {weights:?}, {kept} kept, on {device:?}");
                assert_eq!(bits(&hidden), bits_of(&plain.y, 0..kept), "{name}");
                let again = rms_norm::forward_again(&hidden, &group.head, &inverse);
                assert_eq!(bits(&again), bits_of(&y, 0..kept), "{name}");
                // The squares may be added up in another order, which can move a rounding.
                let step = match activations {
                    DType::F16 => 2f64.powi(-10),
                    DType::Bf16 => 2f64.powi(-7),
                    _ => 2f64.powi(-22),
                };
                let near = |(y, want): (f64, f64)| (y - want).abs() <= step * want.abs();
                assert!(wide(&y).into_iter().zip(wide(&want)).all(near), "{name}");
            }
        }
    }
}

/// Of layers 0 to 2, which read one input, of 3 to 5, and of 6: the gradients to the inputs and to the factors.
fn gradients(group: &Group, together: bool) -> Vec<Vec<u8>> {
    let rank = |i: usize| [70, 40, 4, 4, 5, 32, 33][i];
    let device = group.head.device();
    let lora: Vec<Lora> = (0..7)
        .map(|i| {
            let (a, b) =
                (random(&[rank(i), 72], 50 + i as u64), random(&[group.layers[i].1.dim(0), rank(i)], i as u64));
            Lora { samples: 0..3, a: a.to(&device), b: b.to(&device), scale: 0.3 }
        })
        .collect();
    let mut length = 3;
    let mut place = |l: &Lora| {
        let first = length;
        length += l.a.len() + l.b.len();
        [first, first + l.a.len()]
    };
    let places: Vec<[usize; 2]> = lora.iter().map(&mut place).collect();
    let mut flat = Tensor::zeros(&device, &[length]);
    let branch = |i: usize| Branch {
        dy: &group.like[i],
        weight: &group.layers[i].1,
        lora: (i != 2).then_some(&lora[i]),
        grad: (i != 2 && i != 1).then_some(places[i]),
    };
    let mut dx: Vec<Tensor> = group.x.iter().map(|x| x.scratch_like(x.shape())).collect();
    dx[1] = crate::ops::copy::owned(&group.x[1]);
    let [x0, x1, x2] = &mut dx[..] else { unreachable!("three inputs") };
    let inputs = group.x.iter().map(Some);
    let into = [InputGrad::Overwrite(x0), InputGrad::Add(x1), InputGrad::ThroughGelu { dx: x2, hidden: &group.x[2] }];
    let of = [0..3, 3..6, 6..7];
    let calls = inputs.zip(of.clone()).zip(into);
    let calls = calls.map(|((x, of), dx)| Backward { x, branches: of.map(branch).collect(), dx });
    if together {
        backward_group(calls.collect(), Some(&mut flat));
    } else {
        calls.for_each(|call| backward_group(vec![call], Some(&mut flat)));
    }
    dx.iter().chain([&flat]).map(bits).collect()
}

#[test]
fn gradients_of_a_group_have_the_bits_of_those_alone() {
    for device in all_devices() {
        for [activations, weights, ..] in types(&device) {
            let group = Group::new(&device, activations, weights);
            let (together, alone) = (gradients(&group, true), gradients(&group, false));
            assert!(together == alone, "{activations:?} by {weights:?} on {device:?}");
        }
        device.check().unwrap();
    }
}

#[test]
fn branches_of_one_input_are_added_up_in_their_order() {
    for device in all_devices() {
        for [activations, weights, ..] in types(&device) {
            let group = Group::new(&device, activations, weights);
            let mut sum = group.x[0].scratch_like(group.x[0].shape());
            for i in 0..3 {
                let dx = if i == 0 { InputGrad::Overwrite(&mut sum) } else { InputGrad::Add(&mut sum) };
                backward(&group.like[i], &group.layers[i].1, None, None, None, dx);
            }
            let mut dx = sum.scratch_like(sum.shape());
            let branch = |i: usize| Branch { dy: &group.like[i], weight: &group.layers[i].1, lora: None, grad: None };
            let call = Backward { x: None, branches: (0..3).map(branch).collect(), dx: InputGrad::Overwrite(&mut dx) };
            backward_group(vec![call], None);
            assert_eq!(bits(&dx), bits(&sum), "{activations:?} by {weights:?} on {device:?}");
        }
    }
}

#[test]
fn a_gradient_through_an_activation_is_the_product_by_the_slope() {
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let of = |shape: &[usize], seed| rounded(&random(shape, seed), dtype);
        let (dy, w, hidden) = (of(&[37, 72], 1), of(&[72, 264], 2), of(&[37, 264], 3));
        let run = |device: &Device| {
            let [dy, w, hidden] = [&dy, &w, &hidden].map(|t| t.to(device));
            let mut dx = hidden.scratch_like(hidden.shape());
            backward(&dy, &w, None, None, None, InputGrad::ThroughGelu { dx: &mut dx, hidden: &hidden });
            vec![dx]
        };
        let [dy, w, h] = [&dy, &w, &hidden].map(wide);
        let slope = |v: f64| {
            let inner = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
            let s = 1.0 / (1.0 + (-inner * (v + 0.044715 * v.powi(3))).exp());
            s + v * s * (1.0 - s) * inner * (1.0 + 3.0 * 0.044715 * v * v)
        };
        let product = |i: usize| (0..72).map(|k| dy[i / 264 * 72 + k] * w[k * 264 + i % 264]).sum::<f64>();
        let want: Vec<f64> = h.iter().enumerate().map(|(i, h)| product(i) * slope(*h)).collect();
        let single = [&dy, &w, &h].map(|v| v.iter().map(|v| *v as f32).collect::<Vec<_>>());
        let on_cpu = |v: &[f32], shape: &[usize]| Tensor::from_slice(&Device::Cpu, v, shape);
        let mut reference = on_cpu(&vec![0.0; 37 * 264], &[37, 264]);
        let (dy, w) = (on_cpu(&single[0], &[37, 72]), on_cpu(&single[1], &[72, 264]));
        let h = on_cpu(&single[2], &[37, 264]);
        backward(&dy, &w, None, None, None, InputGrad::Overwrite(&mut reference));
        crate::ops::activation::gelu_tanh_backward(&mut reference, &h);
        if dtype == DType::F32 {
            assert_eq!(bits(&run(&Device::Cpu)[0]), bits(&reference));
        }
        for capability in [HOPPER, PORTABLE] {
            check_precision(&format!("{dtype:?}"), &on_vm_of(capability, run)[0], &reference, &want);
        }
    }
}
