use super::*;
use crate::device::gpu::{HOPPER, PORTABLE};

const N: usize = 1 << 11;

#[test]
fn the_interpreter_does_what_the_isa_says() {
    for capability in [PORTABLE, HOPPER] {
        let device = Device::vm_of(capability, ptxvm::Options::default()).unwrap();
        for check in checks().filter(|c| c.fits(&gpu(&device))) {
            if let Err(e) = check.run(&device, N) {
                panic!("{} on {capability:?}: {e:#}", check.name);
            }
        }
    }
}

/// A check that nothing fails would be none: one bit less in any result is seen, and so is a result that is missing.
#[test]
fn other_results_are_refused() {
    let device = Device::vm(ptxvm::Options::default()).unwrap();
    for check in checks() {
        let out: Vec<Vec<u8>> = check.outputs(&device, N).iter().map(Tensor::to_raw).collect();
        device.check().unwrap();
        for i in 0..out.len() {
            // In an exponent, where an f32 has one; of the first inputs, which are ordinary numbers.
            let mut wrong = out.clone();
            let at = wrong[i].len() / 2 / 4 * 4 + 3;
            wrong[i][at] ^= 0x20;
            assert!((check.judge)(&wrong, N).is_err(), "{}: result {i} with another bit passes", check.name);
        }
    }
}
