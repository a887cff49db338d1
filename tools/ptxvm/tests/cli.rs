//! The command line: arguments, files, exit codes.

use std::path::Path;
use std::process::{Command, Output};

fn ptxvm(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ptxvm")).current_dir(folder).args(args).output().unwrap()
}

const TWICE: &str = ".version 8.4
.target sm_80
.address_size 64
.visible .entry twice(.param .u64 to, .param .u64 from, .param .u32 n, .param .f32 by) {
    .reg .pred %p; .reg .b32 %r<4>; .reg .f32 %f<3>; .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [to]; ld.param.u64 %rd2, [from]; ld.param.u32 %r1, [n]; ld.param.f32 %f1, [by];
    mov.u32 %r2, %tid.x;
    setp.ge.u32 %p, %r2, %r1;
    @%p ret;
    mul.wide.u32 %rd3, %r2, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f2, [%rd5]; mul.f32 %f2, %f2, %f1; st.global.f32 [%rd4], %f2;
    ret;
}
";

#[test]
fn a_kernel_runs_on_files_and_exit_codes_tell_how_it_went() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::write(d.join("k.ptx"), TWICE).unwrap();
    std::fs::write(d.join("in"), [1f32, 2.0, 3.0].map(f32::to_le_bytes).concat()).unwrap();
    let base = ["run", "k.ptx", "--entry", "twice", "--block", "32"];
    let run = |more: &[&str]| ptxvm(d, &[&base[..], more].concat());
    let good = ["--arg", "zero:12", "--arg", "in:in", "--arg", "u32:3", "--arg", "f32:-2"];
    let o = run(&[&good[..], &["--out", "0=out", "--json"]].concat());
    assert_eq!(o.status.code(), Some(0), "{o:?}");
    assert_eq!(std::fs::read(d.join("out")).unwrap(), [-2f32, -4.0, -6.0].map(f32::to_le_bytes).concat());
    let json: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!(json["findings"], serde_json::json!([]));
    assert_eq!(json["stats"]["global_read"], 12);

    let o = run(&[
        "--arg",
        "in:in",
        "--arg",
        "same:0",
        "--arg",
        "u32:3",
        "--arg",
        "f32:2",
        "--out",
        "1=out",
        "--schedule",
        "random:7",
    ]);
    assert_eq!(o.status.code(), Some(0), "{o:?}");
    assert_eq!(std::fs::read(d.join("out")).unwrap(), [2f32, 4.0, 6.0].map(f32::to_le_bytes).concat());

    let o = run(&["--arg", "zero:12", "--arg", "in:in", "--arg", "u32:4", "--arg", "f32:2", "--json"]);
    assert_eq!(o.status.code(), Some(1), "{o:?}");
    let json: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!((&json["findings"][0]["kind"], &json["findings"][0]["thread"]), (&"out-of-bounds".into(), &3.into()));

    for (wrong, says) in [
        (&["--arg", "zero:12"][..], "1 arguments, expected 4"),
        (&["--arg", "same:0"], "an earlier argument"),
        (&["--arg", "u31:0"], "one of in, zero"),
        (&["--arg", "in:nothing"], "nothing"),
        (&["--schedule", "sometimes"], "random:SEED"),
        (&["--grid", "1,2,3,4"], "1 to 3"),
        (&["--perturb", "much"], "--perturb"),
        (&["--out", "5=x"], "argument 5 is no buffer"),
    ] {
        let o = run(wrong);
        let said = String::from_utf8_lossy(&o.stderr);
        assert!(o.status.code() == Some(2) && said.contains(says), "{wrong:?}: {said}");
    }
    std::fs::write(d.join("bad.ptx"), TWICE.replace("mul.f32", "mull.f32")).unwrap();
    let o = ptxvm(d, &["run", "bad.ptx", "--entry", "twice"]);
    let said = String::from_utf8_lossy(&o.stderr);
    assert!(o.status.code() == Some(2) && said.contains("bad.ptx:11: mull.f32"), "{said}");
}
