use super::*;
use crate::device::{DType, Tensor};
use crate::ops::copy::cast;
use crate::ops::testing::{bits, devices, on_vm, random};

#[test]
fn a_token_holds_its_patch_in_the_order_asked_for() {
    // Two channels of 2x4 pixels, numbered; patches of 2x2.
    let numbers: Vec<f32> = (0..16).map(|i| i as f32).collect();
    for device in devices() {
        let latent = Tensor::from_slice(&device, &numbers, &[1, 2, 2, 4]);
        let patches = Patches { channels: 2, size: 2, grid: (1, 2) };
        let first = [0.0, 1.0, 4.0, 5.0, 8.0, 9.0, 12.0, 13.0];
        assert_eq!(forward(&latent, &patches, Order::ChannelFirst).to_host()[..8], first);
        let last = [2.0, 10.0, 3.0, 11.0, 6.0, 14.0, 7.0, 15.0];
        assert_eq!(forward(&latent, &patches, Order::ChannelLast).to_host()[8..], last);
    }
}

#[test]
fn the_inverse_undoes_it_at_odd_sizes() {
    for (channels, size, grid) in [(1, 1, (1, 1)), (3, 2, (5, 3)), (16, 3, (2, 7))] {
        let latent = random(&[3, channels, size * grid.0, size * grid.1], 1);
        for (device, order) in devices().iter().flat_map(|d| [Order::ChannelFirst, Order::ChannelLast].map(|o| (d, o)))
        {
            let patches = Patches { channels, size, grid };
            let back = inverse(&forward(&latent.to(device), &patches, order), &patches, order);
            assert_eq!((back.shape(), bits(&back)), (latent.shape(), bits(&latent)), "{order:?}");
        }
    }
}

#[test]
fn what_does_not_fill_a_patch_is_left_out() {
    let latent = random(&[1, 2, 5, 7], 1);
    let patches = Patches { channels: 2, size: 3, grid: (1, 2) };
    for device in devices() {
        let tokens = forward(&latent.to(&device), &patches, Order::ChannelFirst);
        assert_eq!((tokens.shape(), tokens.to_host()[18]), (&[1, 2, 18][..], latent.host()[3]));
    }
}

#[test]
fn kernels_put_everything_where_the_cpu_does() {
    for (channels, size, grid) in [(3, 1, (5, 90)), (16, 2, (3, 9)), (5, 3, (2, 7))] {
        // A pixel and a row more than there are patches.
        let latent = random(&[2, channels, size * grid.0 + 1, size * grid.1 + 1], 1);
        let patches = Patches { channels, size, grid };
        for (dtype, order) in [(DType::F32, Order::ChannelFirst), (DType::F32, Order::ChannelLast)]
            .into_iter()
            .chain([(DType::Bf16, Order::ChannelFirst), (DType::Bf16, Order::ChannelLast)])
        {
            let stored = cast(&latent, dtype);
            let got = on_vm(|device| {
                let tokens = forward(&stored.to(device), &patches, order);
                vec![inverse(&tokens, &patches, order), tokens]
            });
            let tokens = forward(&cast(&stored, DType::F32), &patches, order);
            for (got, want) in got.iter().zip([inverse(&tokens, &patches, order), tokens]) {
                assert_eq!(got.to_raw(), cast(&want, dtype).to_raw(), "{channels}, {size}, {dtype:?}, {order:?}");
            }
        }
    }
}
