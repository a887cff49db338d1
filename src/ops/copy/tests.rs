use super::*;
use crate::device::Device;

fn numbered(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_slice(&Device::Cpu, &(0..n).map(|i| i as f32).collect::<Vec<_>>(), shape)
}

#[test]
fn rows_come_in_the_order_asked_for_and_one_after_another() {
    let x = numbered(&[3, 2]);
    assert_eq!(gather(&x, &[2, 0, 2]).host(), [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
    let both = concat(&[&x.slice(2..3), &x.slice(0..2)]);
    assert_eq!((both.shape(), both.host()), (&[3, 2][..], &[4.0, 5.0, 0.0, 1.0, 2.0, 3.0][..]));
}

#[test]
fn a_copy_shares_nothing() {
    let x = numbered(&[3]);
    let mut copy = owned(&x);
    copy.host_mut()[0] = 9.0;
    assert_eq!(x.host(), [0.0, 1.0, 2.0]);
}

#[test]
fn blocks_and_columns_lie_where_they_are_put() {
    let mut out = Tensor::zeros(&Device::Cpu, &[2, 3, 4]);
    block_into(&mut out, 1, 2, &numbered(&[2, 2, 2]));
    let want = [0., 0., 0., 0., 0., 0., 0., 1., 0., 0., 2., 3., 0., 0., 0., 0., 0., 0., 4., 5., 0., 0., 6., 7.];
    assert_eq!(out.host(), want);
    assert_eq!(columns(&out, 2, 2).host()[2..6], [0.0, 1.0, 2.0, 3.0]);
    flat_into(&mut out, 22, &numbered(&[1, 2]));
    assert_eq!(out.host()[20..], [0.0, 0.0, 0.0, 1.0]);
}
