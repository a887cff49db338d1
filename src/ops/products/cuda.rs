#![expect(unused)]
use super::{Difference, MOST, Products, Weights};
use crate::ops::cpu::{ordered_sum, scratch};

pub(super) fn forward(out: &mut [Products], differences: &[Difference]) {
    todo!("kernel")
}
