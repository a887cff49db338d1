use std::sync::Arc;

use half::{bf16, f16};

use super::forward;
use crate::device::{DType, Weight};

/// A table of three rows of two, stored as `bytes` of `dtype`.
fn stored(bytes: &[u8], dtype: DType) -> Weight {
    let mut map = memmap2::MmapMut::map_anon(bytes.len()).unwrap();
    map.copy_from_slice(bytes);
    Weight::mapped(Arc::new(map.make_read_only().unwrap()), 0..bytes.len(), dtype, vec![3, 2])
}

#[test]
fn rows_come_out_in_the_order_of_the_ids_from_every_stored_type() {
    let values = [0.5f32, -1.0, 2.0, 3.25, -0.125, 8.0];
    let tables = [
        stored(bytemuck::cast_slice(&values), DType::F32),
        stored(bytemuck::cast_slice(&values.map(f16::from_f32)), DType::F16),
        stored(bytemuck::cast_slice(&values.map(bf16::from_f32)), DType::Bf16),
    ];
    for table in tables {
        let y = forward(&[2, 0, 2], &table);
        assert_eq!(y.shape(), [3, 2]);
        assert_eq!(y.data(), [-0.125, 8.0, 0.5, -1.0, -0.125, 8.0]);
    }
}

#[test]
#[should_panic(expected = "row 3 of 3")]
fn an_index_beyond_the_table_is_a_mistake() {
    forward(&[3], &Weight::owned(vec![0.0; 6], vec![3, 2]));
}
