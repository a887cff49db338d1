use super::*;
use crate::device::{DType, Device};
use crate::ops::copy::cast;
use crate::ops::testing::{devices, on_vm, random};

/// Three rows of two; every number is one in half precision too.
fn table() -> Tensor {
    Tensor::from_slice(&Device::Cpu, &[0.5, -1.0, 2.0, 3.25, -0.125, 8.0], &[3, 2])
}

#[test]
fn rows_come_out_in_the_order_of_the_ids_from_every_stored_type() {
    for (device, dtype) in devices().iter().flat_map(|d| [DType::F32, DType::F16, DType::Bf16].map(|t| (d, t))) {
        let table = cast(&table(), dtype).to(device);
        let y = forward(&[2, 0, 2], &table);
        assert_eq!((y.shape(), y.to_host()), (&[3, 2][..], vec![-0.125, 8.0, 0.5, -1.0, -0.125, 8.0]));
        let y = by_column(&[2, 0, 2], &table);
        assert_eq!((y.shape(), y.to_host()), (&[2, 3][..], vec![-0.125, 0.5, -0.125, 8.0, -1.0, 8.0]));
    }
}

/// Rows that are whole accesses, rows that are not, and tables that begin anywhere.
#[test]
fn kernels_widen_the_rows_that_the_cpu_does() {
    for d in [1, 4, 6, 20] {
        let ids: Vec<u32> = (0..300).map(|i| i * 7 % 31).collect();
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let table = cast(&random(&[33, d], 1), dtype);
            let of = |table: &Tensor| {
                let moved = table.slice(1..33);
                vec![forward(&ids, table), forward(&ids, &moved), by_column(&ids, table), by_column(&ids, &moved)]
            };
            let got = on_vm(|device| of(&table.to(device)));
            for (got, want) in got.iter().zip(of(&table)) {
                assert_eq!(got.to_raw(), want.to_raw(), "{d} wide, {dtype:?}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "row 3 of 3")]
fn an_index_beyond_the_table_is_a_mistake() {
    forward(&[3], &table());
}
