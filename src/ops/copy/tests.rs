use super::*;
use crate::device::{DType, Device};
use crate::ops::linear::rounded;

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
fn rows_keep_the_type_they_are_stored_in() {
    let x = numbered(&[3, 2]);
    for dtype in [DType::F16, DType::Bf16] {
        let half = rounded(&x, dtype);
        let rows = [gather(&half, &[2, 0]), concat(&[&half.slice(2..3), &half.slice(0..1)])];
        assert!(rows.iter().all(|r| r.dtype() == dtype && r.to_host() == [4.0, 5.0, 0.0, 1.0]));
    }
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
