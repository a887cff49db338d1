//! The driver of NVIDIA GPUs, on machines that have none: drivers with something wrong, and one that writes down what it is
//! asked.

use std::path::Path;
use std::process::{Command, Output};

use engine::device::gpu::cuda::{Cuda, probe};
use engine::device::gpu::driver::{Launch, Op, Product};
use engine::device::gpu::{Arg, Driver, Swizzle, TensorMapDesc};
use engine::device::{DType, Device, Tensor};
use tempfile::TempDir;

use super::{check_line, refuses};

/// Compiles the fake `source` with `defines` to `library` in `folder`.
fn compile(folder: &Path, source: &str, library: &str, defines: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(source);
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-w", "-o"]).arg(folder.join(library)).arg(source);
    let output = cc.args(defines.iter().map(|d| format!("-D{d}"))).output().expect("a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A folder with a fake `libcuda.so.1` that was compiled with `defines`.
fn fake(defines: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    compile(folder.path(), "libcuda.c", "libcuda.so.1", defines);
    folder
}

/// Runs `engine` where the driver in `folder` is found first.
fn engine_under(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(args)
        .env("LD_LIBRARY_PATH", folder)
        .env_remove("CUDA_VISIBLE_DEVICES")
        .output()
        .unwrap()
}

/// What an explicit `--device` meets: one line with all of `words`, exit code 2.
fn refuses_under(folder: &Path, device: &str, words: &[&str]) {
    let output = engine_under(folder, &["doctor", "--device", device]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty(), "{stderr}");
    check_line(stderr.trim_end_matches('\n'), words);
}

#[test]
fn a_driver_that_is_not_usable_is_refused_in_a_line() {
    let cases: [(&[&str], &str, &[&str]); 11] = [
        (&["VERSION=11040"], "cuda", &["cuda:0", "libcuda.so.1", "supports CUDA 11.4", "12.4 or later", "550"]),
        (&["INIT=999"], "cuda", &["cuInit failed", "CUDA_ERROR_UNKNOWN", "550"]),
        (&["INIT=803"], "cuda", &["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "reboot"]),
        (&["INIT=34"], "cuda", &["CUDA_ERROR_STUB_LIBRARY", "stub", "LD_LIBRARY_PATH"]),
        (&["INIT=100"], "cuda", &["sees no GPU", "CUDA_ERROR_NO_DEVICE"]),
        (&["NO_TENSOR_MAP"], "cuda", &["libcuda.so.1", "12.4", "has no cuTensorMapEncodeTiled"]),
        (&["DEVICES=0"], "cuda", &["sees no GPU"]),
        (&["MAJOR=7", "MINOR=5"], "cuda", &["device 0", "Fake 0", "compute capability 7.5", "8.0 or later"]),
        (&["DEVICES=2"], "cuda:2", &["cuda:2", "no device 2", "sees 2", "cuda:0 to cuda:1"]),
        (&[], "cuda:7", &["cuda:7", "sees 1", "expected cuda:0"]),
        (&["MIB_FREE=100"], "cuda", &["Fake 0", "100.0 MiB of 2.0 GiB are free", "512.0 MiB"]),
    ];
    for (defines, device, words) in cases {
        refuses_under(fake(defines).path(), device, words);
    }
}

#[test]
fn what_is_no_library_or_no_driver_is_called_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libcuda.so.1");
    std::fs::write(&file, b"not a library").unwrap();
    refuses_under(folder.path(), "cuda", &["no NVIDIA driver", "libcuda.so.1", "550"]);
    let other = Command::new("cc").args(["-shared", "-x", "c", "/dev/null", "-o"]).arg(&file).status().unwrap();
    assert!(other.success());
    refuses_under(folder.path(), "cuda", &["libcuda.so.1", "no cuDriverGetVersion"]);
}

#[test]
fn without_a_driver_cuda_is_refused_and_auto_is_the_cpu() {
    // Where there is a driver, this cannot be seen.
    if probe::driver().is_err_and(|e| e.is_absent) {
        refuses(&["doctor", "--device", "cuda"], &["cuda:0", "no NVIDIA driver", "cannot open shared object", "12.4"]);
        let out = super::says(&["doctor", "--threads", "1"]);
        assert!(out.lines().any(|l| l.split_whitespace().eq(["device", "cpu"])), "{out}");
    }
}

#[test]
fn auto_takes_a_usable_gpu_and_says_why_another_is_not() {
    let said = |folder: &TempDir, device| {
        let output = engine_under(folder.path(), &["doctor", "--device", device]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        [output.stdout, output.stderr].map(|t| String::from_utf8(t).unwrap())
    };
    let [out, err] = said(&fake(&["DEVICES=2"]), "auto");
    assert!(err.is_empty(), "{err}");
    for words in ["Fake 0, 2.0 GiB, compute capability 8.0, 108 multiprocessors; 1.0 GiB free", "CUDA 12.4", "cuda:1"] {
        assert!(out.contains(words), "'{words}' is not in: {out}");
    }
    let old = fake(&["MAJOR=7", "MINOR=5"]);
    let [out, err] = said(&old, "auto");
    check_line(err.trim_end(), &["warning: computing on the cpu", "compute capability 7.5"]);
    assert!(out.contains("not usable: device 0 is a Fake 0"), "{out}");
    assert_eq!(said(&old, "cpu")[1], "");
    let [_, err] = said(&fake(&["DEVICES=0"]), "auto");
    assert_eq!(err, "", "a machine without a GPU is nothing to warn of");
}

/// Runs the ignored test `name` in a process of its own, under a driver that writes down what it is asked; gives that.
fn recorded(name: &str) -> Vec<String> {
    let folder = fake(&[]);
    compile(folder.path(), "libcublasLt.c", "libcublasLt.so.12", &[]);
    let log = folder.path().join("log");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder.path())
        .env("FAKE_CUDA_LOG", &log)
        .env("FAKE_CUBLASLT_LOG", &log)
        .output()
        .unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned());
    assert!(output.status.success() && out.contains("1 passed"), "{out}{err}");
    std::fs::read_to_string(log).unwrap().lines().map(str::to_string).collect()
}

/// Whether the driver that was found is the one that writes.
fn is_fake() -> bool {
    std::env::var_os("FAKE_CUDA_LOG").is_some()
}

const PTX: &str = "
.visible .entry scale(
	.param .u64 scale_param_0,
	.param .f32 scale_param_1,
	.param .align 64 .b8 scale_param_2[128]
)
{ ret; }
.visible .entry nothing()
{ ret; }
";

/// Pages of the staging ring.
const PAGE: usize = 8 << 20;

#[test]
#[ignore = "runs only as a child of the test below"]
fn under_a_fake() {
    if !is_fake() {
        return;
    }
    let cuda = Cuda::open(0).unwrap();
    let length = 2 * PAGE + 1000;
    let [a, b] = [length, 4096].map(|bytes| cuda.alloc(bytes).unwrap());
    let data: Vec<u8> = (0..length).map(|i| ((i * i) >> 7) as u8).collect();
    cuda.write(a, &data).unwrap();
    let mut back = vec![0; length];
    cuda.read(a, &mut back).unwrap();
    assert!(back == data);
    cuda.write(b, &[7; 10]).unwrap();
    cuda.write(b + 10, &[8; 10]).unwrap();

    let desc = TensorMapDesc {
        dtype: DType::Bf16,
        base: a,
        dims: vec![64, 100],
        strides: vec![128],
        tile: vec![64, 32],
        steps: vec![1, 1],
        swizzle: Swizzle::B128,
    };
    let map = cuda.tensor_map(&desc).unwrap();
    let scale = cuda.function("ptx/x.ptx", PTX, "scale", 100 << 10).unwrap();
    assert_eq!(cuda.function("ptx/x.ptx", PTX, "scale", 1 << 10).unwrap(), scale);
    let nothing = cuda.function("ptx/x.ptx", PTX, "nothing", 0).unwrap();
    let info = cuda.info(scale).unwrap().unwrap();
    assert_eq!((info.registers, info.local, info.shared, info.threads), (40, 16, 1024, 256));
    let args = vec![Arg::Ptr(a + 4), Arg::F32(0.5), Arg::Map(map)];
    let launch =
        |function, args| Op::Launch(Launch { function, grid: [5, 2, 1], block: [128, 1, 1], shared: 64, args });
    let ops = [
        launch(scale, args),
        Op::Copy { to: b + 100, from: b, bytes: 20 },
        Op::Forget { at: a, bytes: 16 },
        Op::Fill { to: b, bytes: 5, byte: 3 },
    ];
    ops.iter().for_each(|op| cuda.submit(op).unwrap());
    let graph = cuda.capture(&ops).unwrap();
    cuda.write(b, &[1; 20]).unwrap();
    cuda.replay(graph).unwrap();
    cuda.fork().unwrap();
    let elsewhere = std::thread::scope(|s| s.spawn(|| cuda.submit(&launch(nothing, vec![]))).join().unwrap());
    elsewhere.unwrap();
    cuda.replay(graph).unwrap();
    cuda.join().unwrap();
    let mut end = [0; 21];
    cuda.read(b + 100, &mut end).unwrap();
    assert_eq!(end[..20], [3, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    cuda.free(b);

    let refused = |result: anyhow::Result<()>, words: &[&str]| check_line(&format!("{:#}", result.unwrap_err()), words);
    refused(cuda.alloc(1 << 40).map(drop), &["1.0 TiB", "of 2.0 GiB are free", "CUDA_ERROR_OUT_OF_MEMORY"]);
    let bogus = cuda.function("ptx/y.ptx", "bogus", "f", 0).map(drop);
    refused(bogus, &["ptx/y.ptx", "CUDA_ERROR_INVALID_PTX", "ptxas fatal line 7: unknown instruction"]);
    refused(cuda.function("ptx/x.ptx", PTX, "shift", 0).map(drop), &["ptx/x.ptx has no entry shift"]);
    refused(cuda.function("ptx/x.ptx", PTX, "nothing", 200 << 10).map(drop), &["204800", "the device has 166912"]);
    let wide = Op::Launch(Launch { function: nothing, grid: [1; 3], block: [2048, 1, 1], shared: 0, args: vec![] });
    refused(cuda.submit(&wide), &["nothing", "2048x1x1 threads", "CUDA_ERROR_INVALID_VALUE"]);
    // What cannot be recorded leaves a stream that records.
    refused(cuda.capture(&[wide]).map(drop), &["CUDA_ERROR_INVALID_VALUE"]);
    cuda.capture(&[Op::Fill { to: a, bytes: 1, byte: 0 }]).unwrap();
    cuda.synchronize().unwrap();
}

#[test]
fn the_driver_asks_for_what_the_seam_is_asked_for() {
    let log = recorded("cli::cuda::under_a_fake");
    let launch = "launch scale grid 5 2 1 block 128 1 1 shared 64 args m0+4 1056964608 m0+0";
    let want = format!(
        "alloc m0 of 16778216
alloc m1 of 4096
pin 16777216
s0 records e1
s0 records e2
s0 write m0+0, 8388608
s0 records e1
wait for e2
s0 write m0+8388608, 8388608
s0 records e2
wait for e1
s0 write m0+16777216, 1000
s0 records e1
wait for e2
s0 read m0+0, 8388608
s0 records e2
s0 records e2
wait for e1
s0 read m0+8388608, 8388608
s0 records e1
wait for e2
s0 records e1
wait for e2
s0 read m0+16777216, 1000
s0 records e2
wait for e1
wait for e2
s0 write m1+0, 10
s0 write m1+10, 10
map of m0+0: type 9 rank 2 dims 64 100 stride 128 box 64 32 steps 1 1 swizzle 3
load {} characters
function scale of 3 parameters
scale may use 102400 bytes of shared memory
function nothing of 0 parameters
s0 {launch}
s0 copy m1+0 to m1+100, 20
s0 fill m1+0 with 3, 5
s2 begin capture
s2 end capture of g0 with 3
s0 write m1+0, 20
s0 replay g0
s0 {launch}
s0 copy m1+0 to m1+100, 20
s0 fill m1+0 with 3, 5
s0 records e0
s1 waits for e0
s0 launch nothing grid 5 2 1 block 128 1 1 shared 64 args
s1 replay g0
s1 {launch}
s1 copy m1+0 to m1+100, 20
s1 fill m1+0 with 3, 5
s1 records e0
s0 waits for e0
s0 read m1+100, 21
s0 records e2
wait for e2
free m1
s2 begin capture
s2 end capture of g1 with 0
s2 begin capture
s2 end capture of g2 with 1
s0 wait for all
s1 wait for all
s0 wait for all
s1 wait for all
destroy g0
destroy g2
free m0
unpin
s0 destroy
s1 destroy
s2 destroy",
        PTX.len()
    );
    for (i, (got, want)) in log.iter().zip(want.lines()).enumerate() {
        assert_eq!(got, want, "line {i}, after {:?}", &log[i.saturating_sub(3)..i]);
    }
    assert_eq!(log.len(), want.lines().count(), "{log:?}");
}

#[test]
#[ignore = "runs only as a child of the test below"]
fn ops_under_a_fake() {
    use engine::ops::activation::{Activation, add, forward};
    if !is_fake() {
        return;
    }
    let device = Device::cuda(0).unwrap();
    let x = Tensor::from_slice(&device, &[1.0; 5000], &[5000]);
    for _ in 0..3 {
        device.region(|| {
            let mut y = Tensor::zeros(&device, &[5000]);
            add(&mut y, &x);
            forward(&mut y, Activation::Silu);
        });
    }
    device.check().unwrap();
    // The fake computes nothing.
    assert_eq!(x.to_host(), [1.0; 5000]);
    assert_eq!(x.to(&Device::Cpu).to_raw(), x.to_raw());
}

#[test]
fn regions_of_ops_become_graphs_of_the_driver() {
    let log = recorded("cli::cuda::ops_under_a_fake");
    let count = |words: &str| log.iter().filter(|l| l.contains(words)).count();
    assert_eq!([count("s2 begin capture"), count("s0 replay g0"), count("alloc")], [1, 2, 2], "{log:#?}");
    assert_eq!([count("launch activation_add_f32"), count("launch activation_silu_f32")], [3, 3], "{log:#?}");
    assert_eq!(count("launch activation_add_f32 grid 5 1 1 block 256 1 1 shared 0 args m1+0 m0+0 5000"), 3, "{log:#?}");
}

#[test]
#[ignore = "runs only as a child of the test below"]
fn cublaslt_under_a_fake() {
    if !is_fake() {
        return;
    }
    let cuda = Cuda::open(0).unwrap();
    let at = cuda.alloc(1 << 20).unwrap();
    let (dtype, y, x, w) = (DType::Bf16, at, at + (1 << 18), at + (1 << 19));
    let (m, n, k) = (96, 128, 64);
    let forward = Product {
        dtype,
        out: dtype,
        y,
        x,
        w,
        m,
        n,
        k,
        ldy: n,
        ldx: k,
        ldw: k,
        along: true,
        adds: false,
        is_pinned: true,
    };
    let backward = Product { out: DType::F32, along: false, adds: true, ldw: n, ..forward };
    let refused = |product, words: &[&str]| {
        check_line(&format!("{:#}", cuda.submit(&Op::Product(product)).unwrap_err()), words);
    };
    refused(forward, &["no library has been prepared"]);
    cuda.prepare_products().unwrap();
    cuda.prepare_products().unwrap();
    cuda.submit(&Op::Product(forward)).unwrap();
    let graph = cuda.capture(&[Op::Product(Product { m: 7, x: x + 16, ..forward }), Op::Product(backward)]).unwrap();
    cuda.replay(graph).unwrap();
    cuda.submit(&Op::Product(Product { m: 9, is_pinned: false, ..forward })).unwrap();
    refused(Product { m: 13, ..forward }, &["13x128x64 of Bf16", "pinned: true", "CUBLAS_STATUS_NOT_SUPPORTED"]);
}

#[test]
fn a_kernel_of_cublaslt_is_chosen_once_whatever_the_rows() {
    let log = recorded("cli::cuda::cublaslt_under_a_fake");
    assert_eq!(log.iter().filter(|l| l.contains("alloc")).count(), 3, "memory of the test and of two streams: {log:?}");
    let log: Vec<&str> = log.iter().filter(|l| l.starts_with("lt ")).map(String::as_str).collect();
    let preferences = |parts| {
        let all = [(1, 32 << 20), (3, parts), (5, 16), (6, 16), (7, 16), (8, 16)];
        all.map(|(which, value)| format!("lt preference {which} is {value}"))
    };
    let choose = |transposed, m, w: &str, y| {
        format!(
            "lt choose, transposed {transposed}: a type 14 {w} b type 14 64 x {m} by 64 d type {y} 128 x {m} by 128"
        )
    };
    let product = |beta| format!("lt product 1 {beta} by algorithm 42, 33554432 bytes, all there");
    let mut want = preferences(0).to_vec();
    want.extend([choose(1, 4096, "64 x 128 by 64", 14), product(0), product(0)]);
    want.extend(preferences(0));
    want.extend([choose(0, 4096, "128 x 64 by 128", 0), product(1)]);
    want.extend(preferences(7));
    want.extend([choose(1, 9, "64 x 128 by 64", 14), product(0), "lt destroy".into()]);
    assert_eq!(log, want);
}

#[test]
fn who_multiplies_is_refused_in_a_line_if_it_is_unknown_or_not_there() {
    let folder = fake(&[]);
    compile(folder.path(), "libcublasLt.c", "libcublasLt.so.12", &["cublasLtMatmul=cublasLtOther"]);
    let cases: [(&str, &str, &[&str]); 3] = [
        ("vm", "cutlass", &["ENGINE_PRODUCTS", "'cutlass'", "own or cublaslt"]),
        ("cuda", "cutlass", &["cuda:0", "ENGINE_PRODUCTS", "own or cublaslt"]),
        ("cuda", "cublaslt", &["cuda:0", "ENGINE_PRODUCTS=cublaslt", "libcublasLt.so.12 has no cublasLtMatmul"]),
    ];
    for (device, products, words) in cases {
        let mut engine = Command::new(env!("CARGO_BIN_EXE_engine"));
        engine.args(["doctor", "--device", device]).env("ENGINE_PRODUCTS", products);
        let output = engine.env("LD_LIBRARY_PATH", folder.path()).env_remove("CUDA_VISIBLE_DEVICES").output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        check_line(String::from_utf8(output.stderr).unwrap().trim_end_matches('\n'), words);
    }
}

#[test]
fn phases_and_blocks_are_ranges_where_there_is_nvtx() {
    let folder = tempfile::tempdir().unwrap();
    compile(folder.path(), "libnvToolsExt.c", "libnvToolsExt.so.1", &[]);
    let config = crate::training::write_config(folder.path(), "");
    let log = folder.path().join("log");
    let args = ["--threads", "1", "--device", "cpu", "--set", "num_epochs=1", "eval.every=0"];
    let output = crate::training::train_command(&config, &folder.path().join("run"), &args)
        .env("LD_LIBRARY_PATH", folder.path())
        .env("FAKE_NVTX_LOG", &log)
        .output()
        .unwrap();
    crate::training::assert_success(&output);
    let log = std::fs::read_to_string(log).unwrap();
    for line in
        ["epoch 0", "  encode", "  rollout", "    block 0", "  decode", "  rewards", "  update", "    block 0 backward"]
    {
        assert!(log.lines().any(|l| l == line), "'{line}' is not in: {log}");
    }
}
