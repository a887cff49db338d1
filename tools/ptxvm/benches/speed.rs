//! What a warp instruction costs, by what it does, and what a launch costs: `cargo bench -p ptxvm`.

use std::time::Instant;

use ptxvm::{Arg, Config, Memory, Module, Options};

/// A kernel with a buffer `%rd1` of 1 MB, its thread's four bytes of it at `%rd2`, and the same of shared memory at `%r2`.
fn kernel(body: &str) -> Module {
    let text = format!(
        ".version 8.4\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 o) {{
        .reg .b32 %r<64>; .reg .b64 %rd<16>; .reg .f32 %f<64>; .reg .pred %p<8>; .shared .align 16 .b8 sh[16384];
        ld.param.u64 %rd1, [o]; mov.u32 %r1, %tid.x; mov.u32 %r9, sh; shl.b32 %r2, %r1, 2; add.s32 %r2, %r2, %r9;
        mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd1, %rd2; mov.f32 %f1, 0f3F800000;
        shl.b32 %r3, %r1, 4; add.s32 %r3, %r3, %r9; mul.wide.u32 %rd3, %r1, 16; add.s64 %rd3, %rd1, %rd3;
        {body} ret; }}"
    );
    Module::parse("bench.ptx", &text).unwrap()
}

/// A loop of 2,000 turns over `code` 16 times.
fn looped(before: &str, code: &str) -> String {
    let code: String = (0..16).map(|n| code.replace("{n}", &n.to_string())).collect::<Vec<_>>().join("\n");
    format!("{before} mov.u32 %r8, 0; L: {code} add.s32 %r8, %r8, 1; setp.lt.u32 %p7, %r8, 2000; @%p7 bra L;")
}

fn run(name: &str, module: &Module, threads: u32, options: &Options) {
    let mut memory = Memory::new();
    let o = memory.alloc_zeroed(1 << 20).unwrap();
    let config = Config { grid: [1, 1, 1], block: [threads, 1, 1], shared: 0 };
    let mut best = f64::MAX;
    let mut n = 0;
    for _ in 0..3 {
        let start = Instant::now();
        let r = module.launch(&mut memory, "k", &config, &[Arg::Ptr(o)], options).unwrap();
        best = best.min(start.elapsed().as_secs_f64());
        assert!(r.findings.is_empty(), "{name}: {}", r.findings[0]);
        n = r.stats.instructions;
    }
    println!("{name:44} {:8.1} ns", best * 1e9 / n as f64);
}

fn main() {
    let vector = |n: usize| (0..n).map(|i| format!("%f{}", 10 + i)).collect::<Vec<_>>().join(", ");
    let fill = "mov.f32 %f10, 0f3F800000; mov.f32 %f11, %f10; mov.f32 %f12, %f10; mov.f32 %f13, %f10; st.shared.v4.f32 [%r3], {%f10, %f11, %f12, %f13}; bar.sync 0;";
    let four = vector(4);
    let cases = [
        ("fma.rn.f32", looped("mov.f32 %f2, %f1; mov.f32 %f3, %f1;", "fma.rn.f32 %f2, %f1, %f3, %f2;")),
        ("add.s32", looped("mov.u32 %r4, 0;", "add.s32 %r4, %r4, %r1;")),
        (
            "mad.lo.s32, mul.wide.u32, add.s64, shl.b32",
            looped(
                "mov.u32 %r4, 0; mov.u64 %rd4, 0;",
                "mad.lo.s32 %r4, %r4, %r1, %r8; mul.wide.u32 %rd5, %r4, 4; add.s64 %rd4, %rd4, %rd5; shl.b32 %r5, %r4, 3;",
            ),
        ),
        (
            "setp.lt.s32, selp.b32, @p add.s32",
            looped(
                "mov.u32 %r4, 0;",
                "setp.lt.s32 %p1, %r4, %r1; selp.b32 %r5, %r4, %r1, %p1; @%p1 add.s32 %r4, %r4, 1;",
            ),
        ),
        (
            "ex2.approx.f32, rcp.approx.f32",
            looped("mov.f32 %f2, %f1;", "ex2.approx.f32 %f3, %f1; rcp.approx.f32 %f2, %f3;"),
        ),
        ("ld.global.f32", looped("", "ld.global.f32 %f2, [%rd2];")),
        ("ld.global.nc.v4.f32", looped("", &format!("ld.global.nc.v4.f32 {{{four}}}, [%rd3];"))),
        ("st.global.f32", looped("", "st.global.f32 [%rd2], %f1;")),
        ("st.global.v4.f32", looped(fill, &format!("st.global.v4.f32 [%rd3], {{{four}}};"))),
        ("ld.shared.f32", looped(fill, "ld.shared.f32 %f2, [%r2];")),
        ("ld.shared.v4.f32", looped(fill, &format!("ld.shared.v4.f32 {{{four}}}, [%r3];"))),
        ("ld.shared.f32 of one word", looped(fill, "ld.shared.f32 %f2, [%r9];")),
        ("st.shared.f32", looped(fill, "st.shared.f32 [%r2], %f1;")),
        ("shfl.sync.bfly.b32", looped("", "shfl.sync.bfly.b32 %r4, %r1, 5, 31, 0xffffffff;")),
        ("ldmatrix.x4", looped(fill, "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r3];")),
        (
            "mma.m16n8k16.bf16",
            looped(
                "mov.b32 %r10, 0; mov.b32 %r11, 0; mov.b32 %r12, 0; mov.b32 %r13, 0; mov.f32 %f10, %f1; mov.f32 %f11, %f1; mov.f32 %f12, %f1; mov.f32 %f13, %f1;",
                &format!(
                    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{{four}}}, {{%r10, %r11, %r12, %r13}}, {{%r10, %r11}}, {{{four}}};"
                ),
            ),
        ),
        (
            "cp.async of 16 bytes, commit, wait",
            looped("", "cp.async.cg.shared.global [%r3], [%rd3], 16; cp.async.commit_group; cp.async.wait_group 0;"),
        ),
        ("2 ld.shared.v4.f32 and 16 fma.rn.f32", {
            let fma: String = (0..16)
                .map(|n| format!("fma.rn.f32 %f{}, %f{}, %f{}, %f{};", 20 + n, 10 + n / 4, 14 + n % 4, 20 + n))
                .collect();
            let zero: String = (0..16).map(|n| format!("mov.f32 %f{}, 0f00000000;", 20 + n)).collect();
            looped(&format!("{fill} {zero}"), &format!("ld.shared.v4.f32 {{{four}}}, [%r3]; ld.shared.v4.f32 {{%f14, %f15, %f16, %f17}}, [%r9+{{n}}0]; {fma}").replace("{n}0", "32"))
        }),
    ];
    let only = std::env::args().nth(1).filter(|a| !a.starts_with("--"));
    for check in [false, true] {
        println!("check: {check}");
        for (name, body) in &cases {
            if only.as_ref().is_none_or(|o| name.contains(o.as_str())) {
                run(name, &kernel(body), 128, &Options { check, ..Options::default() });
            }
        }
    }
    if only.is_some() {
        return;
    }
    let m = kernel("st.global.f32 [%rd2], %f1;");
    for (name, grid, shared) in [
        ("a launch of 1 block", 1, 0),
        ("a launch of 16 blocks", 16, 0),
        ("a launch of 16 blocks, 96 KB", 16, 96 << 10),
    ] {
        let mut memory = Memory::new();
        let o = memory.alloc_zeroed(1 << 20).unwrap();
        let config = Config { grid: [grid, 1, 1], block: [128, 1, 1], shared };
        let start = Instant::now();
        for _ in 0..2000 {
            m.launch(&mut memory, "k", &config, &[Arg::Ptr(o)], &Options::default()).unwrap();
        }
        println!("{name:44} {:8.1} us", start.elapsed().as_secs_f64() * 1e6 / 2000.0);
    }
}
