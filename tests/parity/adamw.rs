use engine::device::{Device, Tensor};
use engine::io::TensorFile;
use engine::ops::adamw::{self, AdamW, Moments};
use engine::ops::{copy, norm};
use engine::train::update::clip_factor;

use super::{bits, fixture, read};

/// The fixture's two parameters, one after the other.
fn load(io: &TensorFile, prefix: &str) -> Tensor {
    let [a, b] = ["a", "b"].map(|name| read(io, &format!("{prefix}{name}")));
    let mut flat = Tensor::scratch(&Device::Cpu, &[a.len() + b.len()]);
    copy::flat_into(&mut flat, 0, &a);
    copy::flat_into(&mut flat, a.len(), &b);
    flat
}

#[test]
fn clipping_and_adamw_give_the_bits_of_pytorch_for_five_steps() {
    let io = TensorFile::open(&fixture("adamw.safetensors")).unwrap();
    let adam = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, weight_decay: 1e-2, eps: 1e-8 };
    let mut params = load(&io, "init.");
    let mut moments = Moments::zeros_like(&params);
    for step in 0..5 {
        let get = |what: &str| load(&io, &format!("step{step}.{what}."));
        let grads = get("grad");
        let norm = norm::sum_of_squares(&grads).sqrt();
        let want = f64::from(read(&io, &format!("step{step}.grad_norm")).to_host()[0]);
        assert!((norm - want).abs() <= 1e-6 * want, "step {step}: norm {norm} against {want}");

        adamw::step(&adam, &mut params, &grads, clip_factor(norm, 1.0), &mut moments);
        assert!(bits(&moments.exp_avg) == bits(&get("exp_avg")), "step {step}: exp_avg");
        assert!(bits(&moments.exp_avg_sq) == bits(&get("exp_avg_sq")), "step {step}: exp_avg_sq");
        assert!(bits(&params) == bits(&get("param")), "step {step}: parameters");
    }
}
