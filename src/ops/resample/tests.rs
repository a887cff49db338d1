use super::*;
use crate::device::Device;
use crate::ops::testing::{bits, check_batch_invariance, check_gradient, devices, on_vm, random, wide};

const NONE: [[f64; 3]; 2] = [[0.0; 3], [1.0; 3]];

fn dense(axis: &Axis) -> Vec<Vec<f64>> {
    let row = |t: &axis::Taps| {
        let mut row = vec![0.0; axis.from()];
        t.weights.iter().enumerate().for_each(|(i, w)| row[t.first + i] = f64::from(*w));
        row
    };
    axis.taps.iter().map(row).collect()
}

fn axes() -> [Axis; 4] {
    [
        Axis::resized(9, 4, Filter::Linear).cropped(1..4),
        Axis::resized(5, 8, Filter::Cubic).padded(2, 1),
        Axis::resized(11, 3, Filter::SharpCubic),
        Axis::resized(1, 4, Filter::Cubic),
    ]
}

#[test]
fn an_axis_transposed_is_the_transposed_matrix() {
    for axis in axes() {
        let (m, t) = (dense(&axis), dense(&axis.transposed()));
        assert_eq!((t.len(), axis.transposed().from()), (axis.from(), axis.to()));
        for (o, row) in m.iter().enumerate() {
            assert!(row.iter().enumerate().all(|(i, w)| t[i][o] == *w), "{axis:?}");
        }
    }
}

#[test]
fn weights_sum_to_one_but_for_padding_and_a_size_that_stays_is_the_picture() {
    for axis in axes() {
        for row in dense(&axis) {
            let sum: f64 = row.iter().sum();
            assert!((sum - 1.0).abs() < 1e-6 || row.iter().all(|w| *w == 0.0), "{axis:?}");
        }
    }
    let x = random(&[2, 3, 5, 4], 1);
    for device in devices() {
        for filter in [Filter::Linear, Filter::Cubic, Filter::SharpCubic] {
            let (rows, columns) = (Axis::resized(5, 5, filter), Axis::resized(4, 4, filter));
            assert_eq!(forward(&x.to(&device), &rows, &columns, NONE[0], NONE[1]).to_host(), x.to_host());
        }
    }
}

#[test]
fn the_gradient_is_that_of_finite_differences() {
    let std = [0.5, 2.0, 0.25];
    for (rows, columns) in axes().iter().zip(axes().iter().rev()) {
        let (x, dy) = (random(&[1, 3, rows.from(), columns.from()], 1), random(&[1, 3, rows.to(), columns.to()], 2));
        let dx = forward(&dy, &rows.transposed(), &columns.transposed(), NONE[0], std);
        let (m, n) = (dense(rows), dense(columns));
        let y = |x: &[f64]| -> Vec<f64> {
            let mut y = Vec::new();
            for (plane, std) in x.chunks_exact(rows.from() * columns.from()).zip(std) {
                for (of_rows, of_columns) in m.iter().flat_map(|r| n.iter().map(move |c| (r, c))) {
                    let along = |row: &[f64]| row.iter().zip(of_columns).map(|(x, w)| x * w).sum::<f64>();
                    let lines = plane.chunks_exact(columns.from()).zip(of_rows);
                    y.push((lines.map(|(row, w)| along(row) * w).sum::<f64>() - 0.3) / std);
                }
            }
            y
        };
        check_gradient(&dx, &wide(&x), &dy, y);
    }
}

#[test]
fn a_picture_alone_and_in_a_batch_gives_the_same_bits() {
    let x = random(&[9, 3, 20, 13], 1);
    let (rows, columns) = (Axis::resized(20, 7, Filter::Cubic), Axis::resized(13, 17, Filter::Linear));
    check_batch_invariance("resample", |range| forward(&x.slice(range), &rows, &columns, [0.1; 3], [0.2; 3]));
}

#[test]
fn kernels_give_the_cpu_s_bits() {
    for (rows, columns) in axes().iter().zip(axes().iter().rev()) {
        let (x, d) = (random(&[2, 3, rows.from(), columns.from()], 1), random(&[2, 3, rows.to(), columns.to()], 2));
        let both = |device: &Device| {
            let (transposed, of_columns) = (rows.transposed(), columns.transposed());
            let y = forward(&x.to(device), rows, columns, [0.1, 0.2, 0.3], [0.5, 2.0, 0.25]);
            vec![y, forward(&d.to(device), &transposed, &of_columns, [0.0; 3], [0.5, 2.0, 0.25])]
        };
        for (got, want) in on_vm(both).iter().zip(both(&Device::Cpu)) {
            assert_eq!(bits(got), bits(&want), "{rows:?} and {columns:?}");
        }
    }
}
