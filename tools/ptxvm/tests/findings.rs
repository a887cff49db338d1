//! Mistakes, each planted alone, and what must be said of them.

use ptxvm::{Arg, Config, Finding, Kind, Memory, Module, Options, Schedule};

use crate::isa::module;

/// Launches code with a buffer of 256 zeros at `%rd1`, the thread in `%r1` and 4 bytes a thread of shared memory at `%r2`;
/// the finding must be the same under every schedule.
fn find(threads: u32, code: &str) -> Option<Finding> {
    let body = format!(
        ".shared .align 16 .b8 sh[1024]; ld.param.u64 %rd1, [o]; mov.u32 %r1, %tid.x; mov.u32 %r9, sh; shl.b32 %r2, %r1, 2; add.s32 %r2, %r2, %r9;\n{code}"
    );
    let m = module("", ".param .u64 o", &body).unwrap_or_else(|e| panic!("{code}: {e}"));
    let config = Config { grid: [1, 1, 1], block: [threads, 1, 1], shared: 0 };
    let mut first: Option<Option<Finding>> = None;
    for schedule in [Schedule::Eager, Schedule::Lazy, Schedule::Ascending, Schedule::Descending, Schedule::Random(5)] {
        let mut memory = Memory::new();
        let o = memory.alloc_zeroed(256).unwrap();
        let options = Options { schedule, limit: 1 << 16, ..Options::default() };
        let r = m.launch(&mut memory, "k", &config, &[Arg::Ptr(o)], &options).unwrap();
        let f = r.findings.into_iter().next();
        // who comes first finds nothing written, who comes second an unordered write
        let kind =
            |f: &Option<Finding>| f.as_ref().map(|f| if f.kind == Kind::Uninitialised { Kind::Race } else { f.kind });
        if let Some(first) = &first {
            assert_eq!(kind(first), kind(&f), "{code} under {schedule}: {f:?}");
        }
        first.get_or_insert(f);
    }
    first.unwrap()
}

fn must(kind: Kind, threads: u32, code: &str) -> Finding {
    let f = find(threads, code).unwrap_or_else(|| panic!("{code}: nothing was found"));
    assert_eq!(f.kind, kind, "{code}: {f}");
    f
}

fn clean(threads: u32, code: &str) {
    assert!(find(threads, code).is_none_or(|f| panic!("{code}: {f}")));
}

#[test]
fn addresses_out_of_bounds_and_misaligned_name_thread_and_address() {
    let f =
        must(Kind::OutOfBounds, 32, "mul.wide.u32 %rd2, %r1, 16; add.s64 %rd2, %rd1, %rd2; ld.global.u32 %r4, [%rd2];");
    assert_eq!((f.thread, f.address.map(|a| a & 0xFFF)), (16, Some(256)));
    assert_eq!(f.instruction, "ld.global.u32");
    must(Kind::OutOfBounds, 1, "ld.global.u32 %r4, [16];");
    must(Kind::OutOfBounds, 1, "st.shared.u32 [%r2+1024], %r1;");
    must(Kind::Misaligned, 1, "ld.global.v2.u32 {%r4, %r5}, [%rd1+4];");
    must(Kind::Misaligned, 1, "st.shared.u32 [%r2+2], %r1;");
}

#[test]
fn memory_and_registers_that_nobody_wrote() {
    must(Kind::Uninitialised, 1, "ld.shared.u32 %r4, [%r2];");
    must(Kind::Uninitialised, 1, "add.s32 %r4, %r5, 1;");
    must(Kind::Uninitialised, 1, "@%p1 mov.u32 %r4, 1;");
    let f = must(Kind::Uninitialised, 32, "setp.lt.u32 %p1, %r1, 7; @%p1 mov.u32 %r4, 1; add.s32 %r5, %r4, 1;");
    assert_eq!(f.thread, 7);
    must(Kind::Uninitialised, 1, "st.shared.u16 [%r2], 1; ld.shared.u32 %r4, [%r2];");
}

#[test]
fn memory_that_was_freed() {
    let m = module("", ".param .u64 o", "ld.param.u64 %rd1, [o]; ld.global.u32 %r1, [%rd1];").unwrap();
    let mut memory = Memory::new();
    let o = memory.alloc_zeroed(4).unwrap();
    memory.free(o).unwrap();
    let config = Config { grid: [1, 1, 1], block: [1, 1, 1], shared: 0 };
    let r = m.launch(&mut memory, "k", &config, &[Arg::Ptr(o)], &Options::default()).unwrap();
    assert_eq!(r.findings[0].kind, Kind::UseAfterFree);
}

#[test]
fn shared_memory_races_between_warps_whatever_the_order() {
    let other = "xor.b32 %r3, %r2, 128;";
    must(Kind::Race, 64, "st.shared.u32 [%r9], %r1;");
    let f = find(64, &format!("{other} st.shared.u32 [%r2], %r1; ld.shared.u32 %r4, [%r3];")).unwrap();
    assert!(matches!(f.kind, Kind::Race | Kind::Uninitialised), "{f}");
    clean(64, &format!("{other} st.shared.u32 [%r2], %r1; bar.sync 0; ld.shared.u32 %r4, [%r3];"));
    must(
        Kind::Race,
        64,
        &format!("{other} st.shared.u32 [%r2], %r1; bar.sync 0; ld.shared.u32 %r4, [%r3]; st.shared.u32 [%r2], 1;"),
    );
    clean(
        64,
        &format!(
            "{other} st.shared.u32 [%r2], %r1; bar.sync 0; ld.shared.u32 %r4, [%r3]; bar.sync 0; st.shared.u32 [%r2], 1;"
        ),
    );
    clean(32, "xor.b32 %r3, %r2, 4; st.shared.u32 [%r2], %r1; bar.warp.sync 0xffffffff; ld.shared.u32 %r4, [%r3];");
}

#[test]
fn atomics_on_shared_memory_are_ordered_with_each_other_only() {
    let zero = "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [%r9], 0;";
    clean(64, &format!("{zero} bar.sync 0; atom.shared.add.u32 %r4, [%r9], 1; bar.sync 0; ld.shared.u32 %r5, [%r9];"));
    must(Kind::Race, 64, &format!("{zero} bar.sync 0; atom.shared.add.u32 %r4, [%r9], 1; ld.shared.u32 %r5, [%r9];"));
}

#[test]
fn barriers_order_only_those_who_wait() {
    // warp 0 arrives and does not wait: it must not read what warp 1 wrote
    let code = |tail: &str| {
        format!(
            "setp.lt.u32 %p1, %r1, 32; st.shared.u32 [%r2], %r1; @%p1 bra A; bar.sync 1, 64; ld.shared.u32 %r4, [%r9]; bra E;
             A: bar.arrive 1, 64; {tail} E:"
        )
    };
    clean(64, &code(""));
    let f = find(64, &code("ld.shared.u32 %r4, [%r9+128];")).unwrap();
    assert!(matches!(f.kind, Kind::Race | Kind::Uninitialised), "{f}");
}

#[test]
fn asynchronous_copies_need_their_wait_and_a_barrier() {
    let copy = "mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd1, %rd2; cp.async.ca.shared.global [%r2], [%rd2], 4; cp.async.commit_group;";
    clean(64, &format!("{copy} cp.async.wait_group 0; bar.sync 0; xor.b32 %r3, %r2, 128; ld.shared.u32 %r4, [%r3];"));
    must(Kind::Race, 32, &format!("{copy} cp.async.wait_group 1; ld.shared.u32 %r4, [%r2]; cp.async.wait_group 0;"));
    must(
        Kind::Race,
        32,
        "cp.async.ca.shared.global [%r2], [%rd1], 4; cp.async.wait_group 0; ld.shared.u32 %r4, [%r2];",
    );
    clean(32, &format!("{copy} cp.async.wait_group 0; ld.shared.u32 %r4, [%r2];"));
    must(Kind::NotWaited, 32, "cp.async.ca.shared.global [%r2], [%rd1], 4;");
    clean(
        32,
        "mov.u32 %r5, 0; shl.b32 %r6, %r1, 4; add.s32 %r6, %r6, %r9; cp.async.cg.shared.global [%r6], [%rd1+240], 16, %r5; cp.async.wait_all; ld.shared.u32 %r4, [%r6];",
    );
    must(Kind::OutOfBounds, 1, "cp.async.cg.shared.global [%r2], [%rd1+256], 16; cp.async.wait_all;");
}

#[test]
fn constant_loads_of_what_the_launch_writes() {
    must(Kind::ReadOnly, 32, "ld.global.nc.u32 %r4, [%rd1]; st.global.u32 [%rd1], %r4;");
    must(Kind::ReadOnly, 32, "st.global.u32 [%rd1], %r1; ld.global.nc.u32 %r4, [%rd1];");
    clean(32, "st.global.u32 [%rd1+4], %r1; ld.global.nc.u32 %r4, [%rd1];");
}

#[test]
fn lanes_apart_where_all_must_meet() {
    must(Kind::Divergence, 32, "setp.lt.u32 %p1, %r1, 7; @%p1 bar.sync 0;");
    must(Kind::Divergence, 32, "setp.lt.u32 %p1, %r1, 7; @%p1 bra A; bar.sync 0; bra E; A: bar.sync 0; E:");
    must(
        Kind::Divergence,
        32,
        "setp.lt.u32 %p1, %r1, 7; @%p1 bra A; shfl.sync.bfly.b32 %r4, %r1, 1, 31, 0xffffffff; bra E; A: shfl.sync.bfly.b32 %r4, %r1, 1, 31, 0xffffffff; E:",
    );
    must(Kind::Divergence, 32, "shfl.sync.bfly.b32 %r4, %r1, 1, 31, 0xffff;");
    must(Kind::Divergence, 32, "setp.lt.u32 %p1, %r1, 7; @%p1 exit; shfl.sync.bfly.b32 %r4, %r1, 1, 31, 0xffffffff;");
    must(
        Kind::Divergence,
        32,
        "setp.lt.u32 %p1, %r1, 7; @%p1 exit; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [%r9];",
    );
}

#[test]
fn barriers_that_cannot_complete_say_where_every_warp_is() {
    let f = must(Kind::Deadlock, 64, "setp.lt.u32 %p1, %r1, 32; @%p1 exit; bar.sync 3;");
    assert!(
        f.message.contains("warp 1 at barrier 3 (1 of 2 warps there)") && f.message.contains("1 warps have exited"),
        "{f}"
    );
    must(Kind::Barrier, 96, "setp.lt.u32 %p1, %r1, 32; @%p1 bra A; bar.sync 1, 96; bra E; A: bar.sync 1, 64; E:");
    must(Kind::Barrier, 32, "bar.sync 1, 33;");
    must(Kind::Barrier, 64, "setp.lt.u32 %p1, %r1, 32; @%p1 exit; bar.arrive 1, 64;");
}

#[test]
fn kernels_that_stop_or_never_do() {
    must(Kind::Division, 1, "sub.s32 %r3, %r1, %r1; div.s32 %r4, 5, %r3;");
    must(Kind::Trap, 1, "trap;");
    must(Kind::Endless, 1, "L: add.s32 %r1, %r1, 1; bra L;");
}

#[test]
fn mbarriers_count_and_must_be_initialised() {
    let wait = "W: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r9], 0; @!%p2 bra W;";
    let init = |n: u32| {
        format!(
            "setp.eq.u32 %p1, %r1, 0; @%p1 mbarrier.init.shared::cta.b64 [%r9], {n}; fence.mbarrier_init.release.cluster; bar.sync 0;"
        )
    };
    clean(64, &format!("{} mbarrier.arrive.shared::cta.b64 _, [%r9]; {wait}", init(64)));
    must(Kind::Deadlock, 64, &format!("{} mbarrier.arrive.shared::cta.b64 _, [%r9]; {wait}", init(65)));
    must(Kind::Mbarrier, 64, &format!("{} mbarrier.arrive.shared::cta.b64 _, [%r9], 2; {wait}", init(63)));
    must(Kind::Mbarrier, 32, "mbarrier.arrive.shared::cta.b64 _, [%r9];");
    must(Kind::Mbarrier, 32, &format!("{} ld.shared.u32 %r4, [%r9+4];", init(32)));
    must(Kind::Descriptor, 1, "ld.param.u64 %rd2, [o]; prefetch.tensormap [%rd1];");
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let refuse = |code: &str, says: &str| {
        let e =
            module("", ".param .u64 o", code).err().map(|e| e.to_string()).unwrap_or_else(|| panic!("{code}: taken"));
        assert!(e.starts_with("k.ptx:") && e.contains(says), "{code}: {e}");
    };
    refuse("frobnicate.u32 %r1, %r2;", "frobnicate.u32: this instruction is not supported");
    refuse("tex.2d.v4.f32.f32 {%f1, %f2, %f3, %f4}, [t, {%f1, %f2}];", "tex.2d.v4.f32.f32");
    refuse("mul.lo.cc.u32 %r1, %r2, %r3;", "`.cc` is not supported");
    refuse("add.u32 %r1, %rd2, %r3;", "found `%rd2` of 64 bits, expected 32 bits");
    refuse("add.u32 %r1, %r2;", "found 2 operands, expected 3");
    refuse("mov.u32 %r1, %clock;", "`%clock` is not supported");
    refuse("bra nowhere;", "no label");
    refuse("mov.u32 %q1, 3;", "not a declared register");
    refuse("call foo;", "`foo` has no body here");
    refuse("call %rd1, (%r1), proto;", "`%rd1` has no body here");
    refuse(
        "cp.async.bulk.tensor.1d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2}], [%r3];",
        "im2col",
    );
    for damaged in [
        "",
        ".version 9.0\n.target sm_80",
        ".version 8.4\n.target sm_80\n.entry k(",
        ".version 8.4 .target sm_80 .entry k() { add",
        ".version 8.4 .target sm_80 .global .u32 x[99999999999];",
        "\u{1F980}",
    ] {
        assert!(Module::parse("d.ptx", damaged).is_err(), "{damaged:?}");
    }
}

/// Cutting and changing a real file anywhere never does more than refuse it.
#[test]
fn damaged_files_are_refused_and_never_panic() {
    let text = crate::probes::text("step.sm_80");
    let mut r = crate::probes::data::Draw::new(3);
    for _ in 0..400 {
        let mut b = text.clone().into_bytes();
        for _ in 0..1 + r.next() % 4 {
            let at = (r.next() % b.len() as u64) as usize;
            match r.next() % 3 {
                0 => b[at] = b"{}[]();,.:%0x9a\n "[(r.next() % 17) as usize],
                1 => b.truncate(at.max(200)),
                _ => {
                    b.remove(at);
                }
            }
        }
        if let Ok(m) = Module::parse("d.ptx", &String::from_utf8_lossy(&b)) {
            let _ = m.check();
        }
    }
}

#[test]
fn launches_that_no_driver_takes_are_refused() {
    let m = module("", ".param .u64 o", "").unwrap();
    let mut memory = Memory::new();
    let mut go = |grid, block, shared, args: &[Arg]| {
        m.launch(&mut memory, "k", &Config { grid, block, shared }, args, &Options::default()).map(|_| ())
    };
    let one = [1, 1, 1];
    assert!(go(one, one, 0, &[Arg::Ptr(0)]).is_ok());
    assert!(go(one, [2048, 1, 1], 0, &[Arg::Ptr(0)]).unwrap_err().to_string().contains("1 to 1,024"));
    assert!(go(one, one, 200_000, &[Arg::Ptr(0)]).unwrap_err().to_string().contains("shared memory"));
    assert!(go([0, 1, 1], one, 0, &[Arg::Ptr(0)]).is_err());
    assert!(go(one, one, 0, &[]).unwrap_err().to_string().contains("0 arguments, expected 1"));
    assert!(go(one, one, 0, &[Arg::U32(0)]).unwrap_err().to_string().contains("4 bytes"));
}

/// Two blocks of one warp; the finding under every schedule, blocks in and against their order included.
fn between_blocks(code: &str) -> Vec<Option<Kind>> {
    let body = format!("ld.param.u64 %rd1, [o]; mov.u32 %r1, %laneid; mov.u32 %r2, %ctaid.x; {code}");
    let m = module("", ".param .u64 o", &body).unwrap_or_else(|e| panic!("{code}: {e}"));
    let config = Config { grid: [2, 1, 1], block: [32, 1, 1], shared: 0 };
    let run = |schedule| {
        let mut memory = Memory::new();
        let o = memory.alloc_zeroed(1024).unwrap();
        let options = Options { schedule, ..Options::default() };
        let r = m.launch(&mut memory, "k", &config, &[Arg::Ptr(o)], &options).unwrap();
        r.findings.first().map(|f| f.kind)
    };
    vec![run(Schedule::Ascending), run(Schedule::Descending)]
}

#[test]
fn global_memory_races_between_blocks() {
    let own = "mad.lo.u32 %r3, %r2, 32, %r1; mul.wide.u32 %rd2, %r3, 4; add.s64 %rd2, %rd1, %rd2;";
    let race = Some(Kind::Race);
    assert_eq!(
        between_blocks("mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd1, %rd2; st.global.u32 [%rd2], %r1;"),
        [race; 2]
    );
    assert_eq!(between_blocks(&format!("{own} st.global.u32 [%rd2], %r1;")), [None; 2]);
    assert_eq!(between_blocks("atom.global.add.u32 %r4, [%rd1], 1;"), [None; 2]);
    // the halves of one word
    let half =
        "mad.lo.u32 %r3, %r1, 2, %r2; mul.wide.u32 %rd2, %r3, 2; add.s64 %rd2, %rd1, %rd2; st.global.u16 [%rd2], 1;";
    assert_eq!(between_blocks(half), [None; 2]);
    // a neighbour's word: who reads first sees nothing, who reads second does
    let read = format!(
        "{own} st.global.u32 [%rd2], %r1; xor.b32 %r3, %r3, 32; mul.wide.u32 %rd3, %r3, 4; add.s64 %rd3, %rd1, %rd3; ld.global.u32 %r4, [%rd3];"
    );
    assert_eq!(between_blocks(&read), [race; 2]);
    // whoever comes last reads what the others wrote: a fence, an atomic, and the reads after it
    let last = |fence: &str| {
        format!(
            "{own} st.global.u32 [%rd2], %r1; {fence} bar.sync 0; setp.eq.u32 %p1, %r1, 0; mov.u32 %r4, 0; @%p1 atom.global.add.u32 %r4, [%rd1+512], 1;
             shfl.sync.idx.b32 %r4, %r4, 0, 31, 0xffffffff; setp.ne.u32 %p2, %r4, 1; @%p2 bra E; {fence}
             mul.wide.u32 %rd3, %r1, 4; add.s64 %rd3, %rd1, %rd3; ld.global.u32 %r5, [%rd3]; ld.global.u32 %r6, [%rd3+128]; E:"
        )
    };
    assert_eq!(between_blocks(&last("membar.gl;")), [None; 2]);
    assert_eq!(between_blocks(&last("")), [race; 2]);
    assert_eq!(between_blocks("setp.eq.u32 %p1, %r1, 0; @%p1 st.relaxed.gpu.global.u32 [%rd1], 1;"), [None; 2]);
}

#[test]
fn another_block_of_a_cluster_is_refused() {
    let f = must(Kind::OutOfBounds, 1, "mapa.shared::cluster.u32 %r4, %r2, 1;");
    assert!(f.message.contains("cluster"), "{f}");
    clean(1, "mapa.shared::cluster.u32 %r4, %r2, 0; st.shared::cluster.u32 [%r4], 1; mov.u32 %r5, %cluster_ctarank;");
}
