use super::*;
use crate::ops::copy::owned;
use crate::ops::testing::{bits, devices, max_error, on_vm, random, wide};

#[test]
fn the_average_moves_by_its_share_and_jumps_without_decay() {
    let (average, x) = (random(&[10_007], 1), random(&[10_007], 2));
    for (device, decay) in devices().iter().flat_map(|d| [0.0, 0.3, 1.0].map(|decay| (d, decay))) {
        let mut moved = owned(&average.to(device));
        forward(&mut moved, &x.to(device), decay);
        let d = f64::from(decay);
        let want: Vec<f64> = wide(&average).iter().zip(wide(&x)).map(|(a, x)| d * a + (1.0 - d) * x).collect();
        assert!(max_error(&moved, &want) < 1e-7);
        if decay == 0.0 {
            assert_eq!(bits(&moved), bits(&x));
        }
        if decay == 1.0 {
            assert_eq!(bits(&moved), bits(&average));
        }
    }
}

#[test]
fn a_kernel_gives_the_cpu_s_bits() {
    for n in [1, 7, 1024, 4099] {
        let (average, x) = (random(&[n], 1), random(&[n], 2));
        let mut want = owned(&average);
        forward(&mut want, &x, 0.97);
        let got = on_vm(|device| {
            let mut average = average.to(device);
            forward(&mut average, &x.to(device), 0.97);
            vec![average]
        });
        assert_eq!(bits(&got[0]), bits(&want), "{n}");
    }
}
