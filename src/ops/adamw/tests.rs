use super::*;
use crate::device::Device;
use crate::ops::testing::{devices, max_error, on_vm, random, wide};

const SETTINGS: AdamW = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.99, weight_decay: 0.1, eps: 1e-8 };

/// Bit for bit what PyTorch does is a test of the whole, `tests/parity/adamw.rs`; this is the definition.
#[test]
fn steps_are_those_of_the_definition_in_f64() {
    for device in devices() {
        let n = 10_007;
        let mut params = Tensor::from_slice(&device, random(&[n], 1).host(), &[n]);
        let mut moments = Moments::zeros_like(&params);
        let (mut p, mut m, mut v) = (wide(&params), vec![0.0; n], vec![0.0; n]);
        for update in 1..4 {
            let grads = random(&[n], 10 + update as u64);
            step(&SETTINGS, &mut params, &grads.to(&device), 0.5, &mut moments);
            for (i, g) in wide(&grads).into_iter().enumerate() {
                let g = 0.5 * g;
                p[i] *= 1.0 - SETTINGS.lr * SETTINGS.weight_decay;
                m[i] = SETTINGS.beta1 * m[i] + (1.0 - SETTINGS.beta1) * g;
                v[i] = SETTINGS.beta2 * v[i] + (1.0 - SETTINGS.beta2) * g * g;
                let (m, v) = (m[i] / (1.0 - SETTINGS.beta1.powi(update)), v[i] / (1.0 - SETTINGS.beta2.powi(update)));
                p[i] -= SETTINGS.lr * m / (v.sqrt() + SETTINGS.eps);
            }
        }
        assert_eq!(moments.steps, 3);
        assert!(max_error(&params, &p) < 1e-6 && max_error(&moments.exp_avg, &m) < 1e-6, "{device:?}");
        assert!(max_error(&moments.exp_avg_sq, &v) < 1e-6, "{device:?}");
    }
}

#[test]
fn without_a_gradient_and_decay_nothing_moves() {
    let before = random(&[100], 1);
    for device in devices() {
        let mut params = Tensor::from_slice(&device, before.host(), &[100]);
        let mut moments = Moments::zeros_like(&params);
        let zeros = Tensor::zeros(&device, &[100]);
        step(&AdamW { weight_decay: 0.0, ..SETTINGS }, &mut params, &zeros, 1.0, &mut moments);
        assert_eq!(params.to_host(), before.host(), "{device:?}");
    }
}

#[test]
fn a_kernel_gives_the_cpu_s_bits() {
    for n in [1, 4, 7, 1024, 4101] {
        let grads = [random(&[n], 2), random(&[n], 3)];
        let run = |device: &Device| {
            let mut params = Tensor::from_slice(device, random(&[n], 1).host(), &[n]);
            let mut moments = Moments::zeros_like(&params);
            for grads in &grads {
                // Also gradients that begin where nothing is aligned.
                let whole = Tensor::from_slice(device, &[&[0.0], grads.host()].concat(), &[n + 1]);
                step(&SETTINGS, &mut params, &whole.view(1, &[n]), 0.5, &mut moments);
                step(&SETTINGS, &mut params, &grads.to(device), 1.0, &mut moments);
            }
            vec![params, moments.exp_avg, moments.exp_avg_sq]
        };
        let raw = |tensors: Vec<Tensor>| tensors.iter().map(Tensor::to_raw).collect::<Vec<_>>();
        assert_eq!(raw(on_vm(run)), raw(run(&Device::Cpu)), "{n}");
    }
}

#[test]
fn steps_are_one_graph_although_their_numbers_differ() {
    let run = |device: &Device| {
        let mut params = Tensor::from_slice(device, random(&[100], 1).host(), &[100]);
        let (grads, mut moments) = (random(&[100], 2).to(device), Moments::zeros_like(&params));
        for factor in [1.0, 0.5, 0.25] {
            device.region(|| step(&SETTINGS, &mut params, &grads, factor, &mut moments));
        }
        params.to_raw()
    };
    let [cpu, vm] = devices();
    assert_eq!(run(&vm), run(&cpu));
    let Device::Gpu(gpu) = vm else { panic!("a device of kernels") };
    assert_eq!(gpu.stats().replayed, 2);
}
