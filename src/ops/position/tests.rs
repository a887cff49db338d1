use super::*;
use crate::ops::copy::owned;
use crate::ops::testing::random;

#[test]
fn every_line_gets_its_rows_of_the_table() {
    let (b, length, d, starts) = (3, 4, 5, [7, 0, 2]);
    let (x, table) = (random(&[b, starts.len() * length, d], 1), random(&[11, d], 2));
    let mut y = owned(&x);
    add(&mut y, &table, &starts);
    for (i, (y, x)) in y.host().iter().zip(x.host()).enumerate() {
        let (column, token) = (i % d, i / d % (starts.len() * length));
        let row = starts[token / length] + token % length;
        assert_eq!(*y, x + table.host()[row * d + column]);
    }
}
