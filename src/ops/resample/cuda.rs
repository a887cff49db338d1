use super::{Axis, cpu};
use crate::device::{Device, Tensor};

pub(super) fn forward(out: &mut Tensor, planes: &Tensor, rows: &Axis, columns: &Axis, mean: [f64; 3], std: [f64; 3]) {
    let mut host = Tensor::scratch(&Device::Cpu, out.shape());
    cpu::forward(&mut host, &planes.to(&Device::Cpu), rows, columns, mean, std);
    *out = host.to(&planes.device());
}
