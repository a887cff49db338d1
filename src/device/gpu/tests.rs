use std::sync::mpsc::{RecvTimeoutError, channel};

use super::*;
use crate::device::{Device, Tensor, with_threads};
use crate::ops::activation;

fn vm() -> (Device, Arc<Gpu>) {
    let device = Device::vm(ptxvm::Options::default()).unwrap();
    let Device::Gpu(gpu) = device.clone() else { unreachable!("a GPU") };
    (device, gpu)
}

/// `(a + b)·b` of numbers that the host gives.
fn work(device: &Device, a: &[f32], b: &[f32]) -> Tensor {
    let (mut x, y) = (Tensor::from_slice(device, a, &[a.len()]), Tensor::from_slice(device, b, &[b.len()]));
    activation::add(&mut x, &y);
    activation::multiply(&mut x, &y);
    x
}

#[test]
fn a_region_that_comes_again_is_replayed_with_its_new_numbers() {
    let (device, gpu) = vm();
    for i in 1..5 {
        let i = i as f32;
        let done = device.region(|| work(&device, &[i; 50], &[2.0 * i; 50]));
        assert_eq!(done.to_host(), [6.0 * i * i; 50], "time {i}");
        drop(done);
    }
    device.check().unwrap();
    let GpuStats { replayed, direct, live, .. } = gpu.stats();
    assert_eq!((replayed, direct, live), (3, 1, 0));
}

#[test]
fn a_region_with_other_work_is_done_all_the_same() {
    let (device, gpu) = vm();
    for n in [8, 16, 8, 16, 24] {
        let done = device.region(|| work(&device, &vec![1.0; n], &vec![2.0; n]));
        assert_eq!(done.to_host(), vec![6.0; n]);
    }
    assert_eq!((gpu.stats().replayed, gpu.stats().direct), (2, 3));
}

#[test]
fn reading_inside_a_region_ends_what_was_put_off() {
    let (device, gpu) = vm();
    for i in 0..3 {
        device.region(|| {
            let first = work(&device, &[1.0; 4], &[2.0; 4]).to_host();
            let second = work(&device, &first, &[i as f32; 4]);
            assert_eq!(second.to_host(), [(6.0 + i as f32) * i as f32; 4]);
        });
    }
    device.check().unwrap();
    // The same launches on the same memory, but for the first time.
    assert_eq!((gpu.stats().replayed, gpu.stats().direct), (5, 1));
}

#[test]
fn tables_that_are_larger_than_their_room_are_still_right() {
    let (device, _) = vm();
    let numbers: Vec<f32> = (0..200_000).map(|i| i as f32).collect();
    for _ in 0..3 {
        let done = device.region(|| work(&device, &numbers, &vec![1.0; numbers.len()]));
        assert!(done.to_host().iter().zip(&numbers).all(|(got, v)| *got == v + 1.0));
    }
    device.check().unwrap();
}

#[test]
fn steady_state_asks_the_driver_for_no_memory_and_old_content_is_not_read() {
    let (device, gpu) = vm();
    let one = work(&device, &[1.0; 300], &[1.0; 300]);
    drop(one);
    let kept = gpu.stats().kept;
    for _ in 0..4 {
        drop(work(&device, &[1.0; 300], &[1.0; 300]));
    }
    assert_eq!((gpu.stats().kept, gpu.stats().live), (kept, 0));
    device.check().unwrap();
    let mut unwritten = Tensor::scratch(&device, &[300]);
    activation::forward(&mut unwritten, activation::Activation::Silu);
    let error = device.check().unwrap_err().to_string();
    assert!(error.contains("uninitialised: global memory that nobody wrote"), "{error}");
}

#[test]
fn memory_that_is_used_anew_in_a_region_is_still_what_it_was_for_what_came_before() {
    let (device, _) = vm();
    for _ in 0..3 {
        let kept = Tensor::from_slice(&device, &[3.0; 100], &[100]);
        let done = device.region(|| {
            let mut sum = Tensor::zeros(&device, &[100]);
            activation::add(&mut sum, &kept);
            drop(kept);
            // Takes the memory that the launch before has not read yet.
            let other = Tensor::from_slice(&device, &[4.0; 100], &[100]);
            activation::add(&mut sum, &other);
            sum
        });
        assert_eq!(done.to_host(), [7.0; 100]);
    }
}

#[test]
fn a_failure_is_kept_and_what_comes_after_it_is_nan() {
    let (device, gpu) = vm();
    let x = work(&device, &[1.0; 4], &[1.0; 4]);
    gpu.launch("activation", "activation_none_f32", Grid::flat(1), []);
    assert!(x.to_host().iter().all(|v| v.is_nan()));
    assert!(work(&device, &[1.0; 4], &[1.0; 4]).to_host().iter().all(|v| v.is_nan()));
    for _ in 0..2 {
        let error = device.check().unwrap_err().to_string();
        assert_eq!(error, "ptxvm: no kernel activation_none_f32 in ptx/activation.*.ptx");
    }
}

/// An interpreted GPU with so many bytes of memory.
fn small(memory: u64) -> (Device, Arc<Gpu>) {
    let gpu = Gpu::new(Box::new(vm::Vm::with_memory((8, 0), ptxvm::Options::default(), memory))).unwrap();
    (Device::Gpu(gpu.clone()), gpu)
}

#[test]
fn where_memory_is_short_what_is_kept_goes_back_and_too_much_is_refused_in_words() {
    let (device, gpu) = small(1 << 20);
    let floats = |kib: usize| Tensor::zeros(&device, &[kib << 8]);
    device.region(|| {
        drop(floats(600));
        // The first is kept, and still to be filled.
        drop(floats(700));
    });
    device.check().unwrap();
    assert_eq!((gpu.stats().live, gpu.stats().kept, gpu.stats().allocations), (0, 768 << 10, 2));
    drop(device.beside(|| floats(800), || ()));
    device.check().unwrap();
    let _held = floats(500);
    drop(floats(600));
    let error = device.check().unwrap_err().to_string();
    assert_eq!(error, "ptxvm: 640.0 KiB were asked for, 512.0 KiB of 1.0 MiB are free");
}

#[test]
fn work_beside_other_work_gives_what_it_gives_alone_and_asks_for_no_memory_when_it_comes_again() {
    let (device, gpu) = vm();
    let mut steady = None;
    for i in 0..4 {
        let given = work(&device, &[1.0; 300], &[i as f32; 300]);
        let aside = || {
            let sum = device.region(|| {
                let mut sum = Tensor::zeros(&device, &[300]);
                activation::add(&mut sum, &given);
                sum
            });
            drop(given);
            sum.to_host()
        };
        let (there, here) = device.beside(aside, || work(&device, &[2.0; 300], &[1.0; 300]).to_host());
        assert_eq!((there, here), (vec![(1.0 + i as f32) * i as f32; 300], vec![3.0; 300]));
        let GpuStats { live, peak, allocations, .. } = gpu.stats();
        assert_eq!(live, 0);
        assert_eq!(*steady.get_or_insert((peak, allocations)), (peak, allocations));
    }
    device.check().unwrap();
}

#[test]
fn work_beside_other_work_is_at_the_same_time_also_with_one_thread() {
    let (device, _) = vm();
    let wait = std::time::Duration::from_secs(60);
    let both = with_threads(1, || {
        let ((to_aside, at_aside), (to_main, at_main)) = (channel(), channel());
        let aside = move || {
            at_aside.recv_timeout(wait).and_then(|n: u32| to_main.send(n + 1).map_err(|_| RecvTimeoutError::Timeout))
        };
        let main = move || to_aside.send(1).ok().and_then(|()| at_main.recv_timeout(wait).ok());
        device.beside(aside, main)
    });
    assert_eq!(both.unwrap(), (Ok(()), Some(2)));
}

#[test]
fn a_rehearsal_counts_what_the_work_takes() {
    let (device, gpu) = vm();
    let (planned, ledger) = device.rehearsal().unwrap();
    for device in [&device, &planned] {
        device.phase("work");
        let kept = device.lasting(|| work(device, &[1.0; 1000], &[2.0; 1000]));
        let both =
            device.beside(|| work(device, &[1.0; 5000], &[2.0; 5000]), || work(device, &[1.0; 700], &[2.0; 700]));
        drop((both, kept));
        assert_eq!(crate::ops::norm::first_non_finite(&work(device, &[1.0; 9], &[1.0; 9])), None);
    }
    assert_eq!((planned.peak(), ledger.live()), (gpu.stats().peak as u64, 0));
}

#[test]
fn lists_that_have_not_come_for_long_are_forgotten() {
    let (device, gpu) = vm();
    for _ in 0..2 {
        for n in 1..200 {
            device.region(|| drop(Tensor::zeros(&device, &[64 * n])));
        }
    }
    // The same again and again, but more than are remembered.
    assert_eq!((gpu.stats().replayed, gpu.stats().direct), (0, 398));
    for _ in 0..2 {
        device.region(|| drop(Tensor::zeros(&device, &[64 * 199])));
    }
    device.check().unwrap();
    assert_eq!(gpu.stats().replayed, 2);
}

#[test]
fn a_chip_without_kernels_is_refused_by_name() {
    let old = vm::Vm::new((7, 5), ptxvm::Options::default());
    let error = Gpu::new(Box::new(old)).unwrap_err().to_string();
    assert!(error.starts_with("ptxvm: compute capability 7.5; the kernels need 8.0 or later"), "{error}");
}

#[test]
fn what_no_chip_takes_as_a_tensor_map_is_refused_with_the_rule() {
    let good = TensorMapDesc {
        dtype: crate::device::DType::Bf16,
        base: 1 << 12,
        dims: vec![64, 100],
        strides: vec![128],
        tile: vec![64, 32],
        steps: vec![1, 1],
        swizzle: Swizzle::B128,
    };
    good.check().unwrap();
    type Change = fn(&mut TensorMapDesc);
    let cases: [(Change, &str); 8] = [
        (|d| d.base = 8, "base 0x8, expected a multiple of 16"),
        (|d| d.dims[1] = 0, "a dimension of 0"),
        (|d| d.strides[0] = 100, "a stride of 100 bytes"),
        (|d| d.tile[1] = 257, "257 elements in a box"),
        (|d| d.steps[0] = 9, "a step of 9"),
        (|d| d.tile[0] = 4, "rows of 8 bytes"),
        (|d| d.swizzle = Swizzle::B64, "rows of 128 bytes in a box, swizzled by 64"),
        (|d| d.strides.push(16), "2 dimensions with 2 strides"),
    ];
    for (change, message) in cases {
        let mut desc = good.clone();
        change(&mut desc);
        let error = desc.check().unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn every_file_of_ptx_is_one_that_the_oldest_driver_takes() {
    for file in files() {
        assert!(file.text.contains(".version 8.4\n") || file.text.contains(".version 8.0\n"), "{}", file.path);
        assert!(file.text.contains(&format!(".target {}\n", file.target)), "{}", file.path);
        ptxvm::Module::parse(file.path, file.text).unwrap().check().unwrap();
    }
}
