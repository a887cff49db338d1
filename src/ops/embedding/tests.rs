use super::*;
use crate::device::{DType, Device};
use crate::ops::linear::rounded;

/// Three rows of two; every number is one in half precision too.
fn table() -> Tensor {
    Tensor::from_slice(&Device::Cpu, &[0.5, -1.0, 2.0, 3.25, -0.125, 8.0], &[3, 2])
}

#[test]
fn rows_come_out_in_the_order_of_the_ids_from_every_stored_type() {
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let table = rounded(&table(), dtype);
        let y = forward(&[2, 0, 2], &table);
        assert_eq!((y.shape(), y.host()), (&[3, 2][..], &[-0.125, 8.0, 0.5, -1.0, -0.125, 8.0][..]));
        let y = by_column(&[2, 0, 2], &table);
        assert_eq!((y.shape(), y.host()), (&[2, 3][..], &[-0.125, 0.5, -0.125, 8.0, -1.0, 8.0][..]));
    }
}

#[test]
#[should_panic(expected = "row 3 of 3")]
fn an_index_beyond_the_table_is_a_mistake() {
    forward(&[3], &table());
}
