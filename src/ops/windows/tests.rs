use super::*;
use crate::device::Device;
use crate::ops::copy::owned;
use crate::ops::testing::{bits, check_batch_invariance, devices, random};

/// An image whose pixels are their own numbers, from 1 on.
fn numbered(b: usize, h: usize, w: usize) -> Tensor {
    let numbers: Vec<f32> = (1..=b * h * w).map(|i| i as f32).collect();
    Tensor::from_slice(&Device::Cpu, &numbers, &[b, h, w, 1])
}

#[test]
fn windows_are_cut_from_the_turned_and_padded_image() {
    // 1 2 3      turned by one    5 6 0 4
    // 4 5 6                       8 9 0 7
    // 7 8 9                       0 0 0 0
    //                             2 3 0 1
    let windows = Windows { image: [3, 3], size: 2, shift: 1 };
    let plain = Windows { shift: 0, ..windows };
    for device in devices() {
        let parts = partition(&numbered(1, 3, 3).to(&device), &windows).to_host();
        assert_eq!(parts, [5., 6., 8., 9., 0., 4., 0., 7., 0., 0., 2., 3., 0., 0., 0., 1.], "{device:?}");
        let parts = partition(&numbered(1, 3, 3).to(&device), &plain).to_host();
        assert_eq!(parts, [1., 2., 4., 5., 3., 0., 6., 0., 7., 8., 0., 0., 9., 0., 0., 0.], "{device:?}");
    }
}

#[test]
fn windows_of_a_kind_lie_together_and_what_came_from_the_other_side_is_not_seen() {
    let windows = Windows { image: [6, 9], size: 3, shift: 1 };
    assert_eq!(windows.of_kinds(2), [0..4, 4..6, 6..10, 10..12]);
    assert_eq!(Windows { shift: 0, ..windows }.of_kinds(2), [0..12, 12..12, 12..12, 12..12]);
    let [inner, right, bottom, corner] =
        KINDS.map(|kind| (0..9).filter(|p| windows.sees(kind, 0, *p)).collect::<Vec<_>>());
    assert_eq!(inner.len(), 9);
    assert_eq!(right, [0, 1, 3, 4, 6, 7]);
    assert_eq!(bottom, [0, 1, 2, 3, 4, 5]);
    assert_eq!(corner, [0, 1, 3, 4]);
    assert!(windows.sees(KINDS[3], 5, 2) && !windows.sees(KINDS[3], 5, 8));
}

#[test]
fn windows_come_back_to_where_they_were_cut_from() {
    for (h, w, size, shift) in [(3, 3, 2, 1), (8, 6, 4, 2), (7, 5, 7, 3), (2, 9, 5, 2), (5, 5, 5, 0)] {
        let windows = Windows { image: [h, w], size, shift };
        for channels in [3, 8] {
            let x = random(&[2, h, w, channels], 1);
            let all = devices().map(|device| {
                let x = x.to(&device);
                let (parts, mut twice) = (partition(&x, &windows), owned(&x));
                add(&mut twice, &parts, &windows);
                (parts, twice)
            });
            let want: Vec<f32> = x.to_host().iter().map(|v| v + v).collect();
            for (parts, twice) in &all {
                assert_eq!(twice.to_host(), want, "{h}x{w} by {size} shifted {shift}");
                assert!(bits(parts) == bits(&all[0].0), "{h}x{w} by {size} shifted {shift}: windows in another order");
            }
        }
    }
}

#[test]
fn neighbours_are_taken_together_column_by_column() {
    let x = numbered(1, 3, 3);
    let want = [1., 4., 2., 5., 3., 6., 0., 0., 7., 0., 8., 0., 9., 0., 0., 0.];
    for device in devices() {
        assert_eq!(neighbours(&x.to(&device)).to_host(), want, "{device:?}");
    }
    let x = random(&[2, 4, 5, 8], 1);
    let [on_cpu, on_gpu] = devices().map(|device| bits(&neighbours(&x.to(&device))));
    assert!(on_cpu == on_gpu);
}

#[test]
fn an_image_gives_the_same_bits_alone_and_in_a_batch() {
    let x = random(&[9, 6, 5, 4], 1);
    check_batch_invariance("neighbours", |samples| neighbours(&x.slice(samples)));
}
