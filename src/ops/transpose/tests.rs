use super::*;
use crate::ops::testing::random;

#[test]
fn element_i_j_becomes_j_i_at_odd_sizes() {
    for [b, m, n] in [[1, 1, 1], [2, 3, 70], [3, 33, 17]] {
        let x = random(&[b, m, n], 1);
        let y = forward(&x);
        assert_eq!(y.shape(), [b, n, m]);
        for (at, v) in x.data().iter().enumerate() {
            let (i, j) = (at / n % m, at % n);
            assert_eq!(y.data()[at / (m * n) * m * n + j * m + i], *v);
        }
    }
}
