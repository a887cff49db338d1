use super::*;
use crate::device::DType;
use crate::ops::copy::{cast, owned};
use crate::ops::testing::{devices, on_vm, random};

#[test]
fn every_line_gets_its_rows_of_the_table() {
    let (b, length, d, starts) = (3, 4, 5, [7, 0, 2]);
    let (x, table) = (random(&[b, starts.len() * length, d], 1), random(&[11, d], 2));
    for device in devices() {
        let mut y = owned(&x.to(&device));
        add(&mut y, &table.to(&device), &starts);
        for (i, (y, x)) in y.to_host().iter().zip(x.host()).enumerate() {
            let (column, token) = (i % d, i / d % (starts.len() * length));
            let row = starts[token / length] + token % length;
            assert_eq!(*y, x + table.host()[row * d + column]);
        }
    }
}

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// Lines that are whole accesses and lines that are not, of every type with tables of every type: the sum in single
/// precision, rounded once.
#[test]
fn kernels_add_as_the_cpu_does() {
    for (length, d, starts) in [(4, 5, vec![7, 0, 2]), (3, 16, vec![3]), (70, 16, vec![1, 0])] {
        let (x, table) = (random(&[2, starts.len() * length, d], 1), random(&[72, d], 2));
        for (of_x, of_table) in TYPES.iter().flat_map(|x| TYPES.map(|table| (*x, table))) {
            let (x, table) = (cast(&x, of_x), cast(&table, of_table));
            let mut want = owned(&cast(&x, DType::F32));
            add(&mut want, &table, &starts);
            let got = on_vm(|device| {
                let mut y = owned(&x.to(device));
                add(&mut y, &table.to(device), &starts);
                vec![y]
            });
            let same = got[0].to_raw() == cast(&want, of_x).to_raw();
            assert!(same, "{starts:?} of {length} by {d}, {of_table:?} to {of_x:?}");
        }
    }
}
