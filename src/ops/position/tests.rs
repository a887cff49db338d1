use super::*;
use crate::ops::testing::{random, random_weight};

#[test]
fn every_line_gets_its_rows_of_the_table() {
    let (b, length, d, starts) = (3, 4, 5, [7, 0, 2]);
    let (x, table) = (random(&[b, starts.len() * length, d], 1), random_weight(&[11, d], 2));
    let mut y = x.clone();
    add(&mut y, &table, &starts);
    for (i, (y, x)) in y.data().iter().zip(x.data()).enumerate() {
        let (column, token) = (i % d, i / d % (starts.len() * length));
        let row = starts[token / length] + token % length;
        assert_eq!(*y, x + table.elems().get(row * d + column));
    }
}
