use crate::device::Tensor;

pub(super) fn step(x: &mut Tensor, velocity: &Tensor, guidance: Option<f32>, dt: f32) {
    match guidance {
        None => x.data_mut().iter_mut().zip(velocity.data()).for_each(|(x, v)| *x += v * dt),
        Some(g) => {
            let (u, c) = velocity.data().split_at(x.len());
            x.data_mut().iter_mut().zip(u.iter().zip(c)).for_each(|(x, (u, c))| *x += (u + g * (c - u)) * dt);
        }
    }
}
