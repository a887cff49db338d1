use engine::io::TensorFile;
use engine::models::lora::{Adapter, Factor};
use engine::train::optimizer::{AdamW, Moments, clip_grad_norm};

use super::fixture;

/// The fixture's two parameters as the factors of one layer.
fn load(io: &TensorFile, prefix: &str) -> Adapter {
    let get = |name: &str| io.tensor(&format!("{prefix}{name}")).unwrap();
    Adapter::from_factors(1.0, vec![Some(Factor { a: get("a"), b: get("b") })])
}

fn same_bits(got: &Adapter, want: &Adapter) -> bool {
    got.tensors().zip(want.tensors()).all(|(g, w)| g.shape() == w.shape() && g.data() == w.data())
}

#[test]
fn clipping_and_adamw_give_the_bits_of_pytorch_for_five_steps() {
    let io = TensorFile::open(&fixture("adamw.safetensors")).unwrap();
    let adam = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, weight_decay: 1e-2, eps: 1e-8 };
    let mut params = load(&io, "init.");
    let mut moments = Moments::zeros_like(&params);
    for step in 0..5 {
        let get = |what: &str| load(&io, &format!("step{step}.{what}."));
        let mut grads = get("grad");
        let norm = clip_grad_norm(&mut grads, 1.0);
        let want = f64::from(io.tensor(&format!("step{step}.grad_norm")).unwrap().data()[0]);
        assert!((norm - want).abs() <= 1e-6 * want, "step {step}: norm {norm} against {want}");
        assert!(same_bits(&grads, &get("clipped")), "step {step}: clipped gradients");

        adam.step(&mut params, &grads, &mut moments);
        assert!(same_bits(&moments.exp_avg, &get("exp_avg")), "step {step}: exp_avg");
        assert!(same_bits(&moments.exp_avg_sq, &get("exp_avg_sq")), "step {step}: exp_avg_sq");
        assert!(same_bits(&params, &get("param")), "step {step}: parameters");
    }
}
