use super::*;
use crate::device::Device;
use crate::ops::testing::{bits, random};

#[test]
fn a_token_holds_its_patch_in_the_order_asked_for() {
    // Two channels of 2x4 pixels, numbered; patches of 2x2.
    let numbers: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let latent = Tensor::from_slice(&Device::Cpu, &numbers, &[1, 2, 2, 4]);
    let patches = Patches { channels: 2, size: 2, grid: (1, 2) };
    let first = [0.0, 1.0, 4.0, 5.0, 8.0, 9.0, 12.0, 13.0];
    assert_eq!(forward(&latent, &patches, Order::ChannelFirst).host()[..8], first);
    let last = [2.0, 10.0, 3.0, 11.0, 6.0, 14.0, 7.0, 15.0];
    assert_eq!(forward(&latent, &patches, Order::ChannelLast).host()[8..], last);
}

#[test]
fn the_inverse_undoes_it_at_odd_sizes() {
    for (channels, size, grid) in [(1, 1, (1, 1)), (3, 2, (5, 3)), (16, 3, (2, 7))] {
        let latent = random(&[3, channels, size * grid.0, size * grid.1], 1);
        for order in [Order::ChannelFirst, Order::ChannelLast] {
            let patches = Patches { channels, size, grid };
            let back = inverse(&forward(&latent, &patches, order), &patches, order);
            assert_eq!((back.shape(), bits(&back)), (latent.shape(), bits(&latent)), "{order:?}");
        }
    }
}

#[test]
fn what_does_not_fill_a_patch_is_left_out() {
    let latent = random(&[1, 2, 5, 7], 1);
    let patches = Patches { channels: 2, size: 3, grid: (1, 2) };
    let tokens = forward(&latent, &patches, Order::ChannelFirst);
    assert_eq!((tokens.shape(), tokens.host()[18]), (&[1, 2, 18][..], latent.host()[3]));
}
