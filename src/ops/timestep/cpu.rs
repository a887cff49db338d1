use crate::device::Tensor;

pub(super) fn forward(timestep: &[f32], channels: usize) -> Tensor {
    let half = channels / 2;
    let mut out = Tensor::scratch(&[timestep.len(), channels]);
    for (row, t) in out.data_mut().chunks_exact_mut(channels).zip(timestep) {
        for i in 0..half {
            // The exponent is rounded as PyTorch rounds it: times t up to 1000, that is seen in the velocity.
            let exponent = -(10_000f64.ln() as f32) * i as f32 / half as f32;
            let frequency = f64::from(exponent).exp() as f32;
            let (sin, cos) = (t * frequency).sin_cos();
            row[i] = cos;
            row[half + i] = sin;
        }
    }
    out
}
