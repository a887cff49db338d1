//! Instructions one by one, against values worked out from the PTX ISA.

use half::{bf16, f16};
use ptxvm::{Arg, Config, Memory, Module, Options, Report, Schedule};

const REGISTERS: &str =
    ".reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<40>; .reg .f32 %f<9>; .reg .b64 %rd<9>; .reg .f64 %fd<9>;";

pub fn module(head: &str, params: &str, body: &str) -> Result<Module, ptxvm::Error> {
    let text = format!(
        ".version 8.4\n.target sm_80\n.address_size 64\n{head}\n.visible .entry k({params})\n{{\n{REGISTERS}\n{body}\nret;\n}}\n"
    );
    let m = Module::parse("k.ptx", &text)?;
    m.check()?;
    Ok(m)
}

fn launch(m: &Module, memory: &mut Memory, threads: u32, args: &[Arg], options: &Options) -> Report {
    let config = Config { grid: [1, 1, 1], block: [threads, 1, 1], shared: 1024 };
    m.launch(memory, "k", &config, args, options).unwrap()
}

/// `%r4` (or `%rd4` for 64 bits) of code that has `%r1` to `%r3`, the same bits in `%f1` to `%f3`.
fn run(code: &str, a: u32, b: u32, c: u32) -> u64 {
    let body = format!(
        "ld.param.u32 %r1, [a]; ld.param.u32 %r2, [b]; ld.param.u32 %r3, [c]; ld.param.u64 %rd1, [o];
         mov.b32 %f1, %r1; mov.b32 %f2, %r2; mov.b32 %f3, %r3; mov.b64 %rd2, {{%r1, %r2}}; mov.u64 %rd4, 0; mov.u32 %r4, 0;
         {code}
         cvt.u64.u32 %rd5, %r4; or.b64 %rd5, %rd5, %rd4; st.global.u64 [%rd1], %rd5;"
    );
    let m = module("", ".param .u32 a, .param .u32 b, .param .u32 c, .param .u64 o", &body)
        .unwrap_or_else(|e| panic!("{code}: {e}"));
    let mut memory = Memory::new();
    let o = memory.alloc(8).unwrap();
    let r = launch(&m, &mut memory, 1, &[Arg::U32(a), Arg::U32(b), Arg::U32(c), Arg::Ptr(o)], &Options::default());
    assert!(r.findings.is_empty(), "{code}: {}", r.findings[0]);
    u64::from_le_bytes(memory.bytes(o, 8).unwrap().try_into().unwrap())
}

fn check(table: &[(&str, u32, u32, u32, u64)]) {
    for &(code, a, b, c, want) in table {
        let got = run(code, a, b, c);
        assert_eq!(got, want, "{code} of {a:#x}, {b:#x}, {c:#x}: {got:#x}, expected {want:#x}");
    }
}

const fn neg(v: i32) -> u32 {
    v as u32
}

#[test]
fn shifts_clamp_and_only_funnel_shifts_wrap() {
    check(&[
        ("shl.b32 %r4, %r1, %r2;", 1, 31, 0, 1 << 31),
        ("shl.b32 %r4, %r1, %r2;", 1, 32, 0, 0),
        ("shl.b32 %r4, %r1, %r2;", 1, 33, 0, 0),
        ("shr.u32 %r4, %r1, %r2;", 0x8000_0000, 200, 0, 0),
        ("shr.s32 %r4, %r1, %r2;", 0x8000_0000, 200, 0, 0xFFFF_FFFF),
        ("shf.l.wrap.b32 %r4, %r1, %r2, %r3;", 0xF000_0000, 1, 4, 0x1F),
        ("shf.l.wrap.b32 %r4, %r1, %r2, %r3;", 0xF000_0000, 1, 36, 0x1F),
        ("shf.l.clamp.b32 %r4, %r1, %r2, %r3;", 0xF000_0000, 1, 36, 0xF000_0000),
        ("shf.r.wrap.b32 %r4, %r1, %r2, %r3;", 0x10, 3, 4, 0x3000_0001),
        ("shf.r.clamp.b32 %r4, %r1, %r2, %r3;", 0x10, 3, 77, 3),
        ("shl.b64 %rd4, %rd2, %r3;", 1, 0, 40, 1 << 40),
        ("shr.s64 %rd4, %rd2, %r3;", 0, 0x8000_0000, 100, u64::MAX),
    ]);
}

#[test]
fn integer_arithmetic_wraps_widens_and_divides_as_written() {
    check(&[
        ("add.s32 %r4, %r1, %r2;", 0x7FFF_FFFF, 1, 0, 0x8000_0000),
        ("add.sat.s32 %r4, %r1, %r2;", 0x7FFF_FFFF, 1, 0, 0x7FFF_FFFF),
        ("sub.sat.s32 %r4, %r1, %r2;", 0x8000_0000, 1, 0, 0x8000_0000),
        ("mul.lo.s32 %r4, %r1, %r2;", 0x10001, 0x10001, 0, 0x20001),
        ("mul.hi.s32 %r4, %r1, %r2;", neg(-1), 1, 0, 0xFFFF_FFFF),
        ("mul.hi.u32 %r4, %r1, %r2;", neg(-1), neg(-1), 0, 0xFFFF_FFFE),
        ("mul.wide.s32 %rd4, %r1, %r2;", neg(-2), 3, 0, (-6i64) as u64),
        ("mul.wide.u32 %rd4, %r1, %r2;", neg(-2), 3, 0, 3 * 0xFFFF_FFFEu64),
        ("mad.lo.s32 %r4, %r1, %r2, %r3;", neg(-2), 3, 10, 4),
        ("mad.hi.u32 %r4, %r1, %r2, %r3;", neg(-1), neg(-1), 2, 0),
        ("mul.hi.s64 %rd4, %rd2, %rd2;", 0, 2, 0, 4),
        ("div.s32 %r4, %r1, %r2;", neg(-7), 2, 0, u64::from(neg(-3))),
        ("rem.s32 %r4, %r1, %r2;", neg(-7), 2, 0, u64::from(neg(-1))),
        ("div.u32 %r4, %r1, %r2;", neg(-7), 2, 0, 0x7FFF_FFFC),
        ("min.s32 %r4, %r1, %r2;", neg(-7), 2, 0, u64::from(neg(-7))),
        ("min.u32 %r4, %r1, %r2;", neg(-7), 2, 0, 2),
        ("abs.s32 %r4, %r1;", neg(-7), 0, 0, 7),
        ("neg.s32 %r4, %r1;", 7, 0, 0, u64::from(neg(-7))),
        ("sad.s32 %r4, %r1, %r2, %r3;", neg(-3), 4, 10, 17),
        ("dp4a.s32.s32 %r4, %r1, %r2, %r3;", 0xFF02_0304, 0x0201_0101, 5, 5 + 4 + 3 + 2 - 2),
        ("dp4a.u32.u32 %r4, %r1, %r2, %r3;", 0xFF00_0000, 0x0200_0000, 0, 510),
        (
            "{ .reg .b16 %q<3>; cvt.u16.u32 %q1, %r1; cvt.u16.u32 %q2, %r2; mul.wide.u16 %r4, %q1, %q2; }",
            0xFFFF,
            0xFFFF,
            0,
            0xFFFE_0001,
        ),
    ]);
}

#[test]
fn bits_are_taken_put_and_found() {
    check(&[
        ("bfe.u32 %r4, %r1, %r2, %r3;", 0xABCD_1234, 8, 8, 0x12),
        ("bfe.s32 %r4, %r1, %r2, %r3;", 0x8000, 8, 8, 0xFFFF_FF80),
        ("bfe.s32 %r4, %r1, %r2, %r3;", 0x8000_0000, 40, 4, 0xFFFF_FFFF),
        ("bfe.s32 %r4, %r1, %r2, %r3;", 0xFFFF_FFFF, 4, 0, 0),
        ("bfe.u32 %r4, %r1, %r2, %r3;", 0xABCD_1234, 0x108, 8, 0x12),
        ("bfi.b32 %r4, %r1, %r2, 4, 4;", 0xFF, 0xFFFF_0000, 0, 0xFFFF_00F0),
        ("bfi.b32 %r4, %r1, %r2, 28, 99;", 0xAB, 0, 0, 0xB000_0000),
        ("bfi.b64 %rd4, %rd2, %rd2, 32, 32;", 7, 0, 0, 0x7_0000_0007),
        ("prmt.b32 %r4, %r1, %r2, %r3;", 0x0302_0100, 0x0706_0504, 0x7531, 0x0705_0301),
        ("prmt.b32 %r4, %r1, %r2, %r3;", 0x0302_0180, 0, 0x0008, 0x8080_80FF),
        ("lop3.b32 %r4, %r1, %r2, %r3, 0x96;", 0xF0F0, 0xCCCC, 0xAAAA, 0x9696),
        ("lop3.b32 %r4, %r1, %r2, %r3, 0x80;", 0xF0, 0xCC, 0xAA, 0x80),
        ("bfind.u32 %r4, %r1;", 0x10000, 0, 0, 16),
        ("bfind.shiftamt.u32 %r4, %r1;", 0x10000, 0, 0, 15),
        ("bfind.u32 %r4, %r1;", 0, 0, 0, 0xFFFF_FFFF),
        ("bfind.s32 %r4, %r1;", neg(-1), 0, 0, 0xFFFF_FFFF),
        ("bfind.s32 %r4, %r1;", neg(-5), 0, 0, 2),
        ("clz.b32 %r4, %r1;", 0, 0, 0, 32),
        ("popc.b32 %r4, %r1;", 0xF00F, 0, 0, 8),
        ("popc.b64 %r4, %rd2;", 1, 3, 0, 3),
        ("brev.b32 %r4, %r1;", 1, 0, 0, 0x8000_0000),
        ("not.b32 %r4, %r1;", 1, 0, 0, 0xFFFF_FFFE),
        ("cnot.b32 %r4, %r1;", 0, 0, 0, 1),
        ("{ .reg .b16 %h<3>; mov.b32 {%h1, %h2}, %r1; mov.b32 %r4, {%h2, %h1}; }", 0x1234_5678, 0, 0, 0x5678_1234),
    ]);
}

#[test]
fn conversions_extend_by_the_source_and_saturate() {
    let f = |v: f32| v.to_bits();
    check(&[
        ("cvt.s32.s8 %r4, %r1;", 0x1FF, 0, 0, 0xFFFF_FFFF),
        ("cvt.u32.u8 %r4, %r1;", 0x1FF, 0, 0, 0xFF),
        ("cvt.sat.u8.s32 %r4, %r1;", 300, 0, 0, 255),
        ("cvt.sat.u8.s32 %r4, %r1;", neg(-3), 0, 0, 0),
        ("cvt.s64.s32 %rd4, %r1;", neg(-3), 0, 0, (-3i64) as u64),
        ("cvt.u64.u32 %rd4, %r1;", neg(-3), 0, 0, 0xFFFF_FFFD),
        ("cvt.rni.s32.f32 %r4, %f1;", f(2.5), 0, 0, 2),
        ("cvt.rni.s32.f32 %r4, %f1;", f(3.5), 0, 0, 4),
        ("cvt.rzi.s32.f32 %r4, %f1;", f(-2.9), 0, 0, u64::from(neg(-2))),
        ("cvt.rmi.s32.f32 %r4, %f1;", f(-2.1), 0, 0, u64::from(neg(-3))),
        ("cvt.rpi.s32.f32 %r4, %f1;", f(2.1), 0, 0, 3),
        ("cvt.rzi.u32.f32 %r4, %f1;", f(-1.0), 0, 0, 0),
        ("cvt.rzi.s32.f32 %r4, %f1;", f(3e9), 0, 0, 0x7FFF_FFFF),
        ("cvt.rzi.s32.f32 %r4, %f1;", f(f32::NAN), 0, 0, 0),
        ("cvt.rn.f32.s32 %f4, %r1; mov.b32 %r4, %f4;", 16_777_217, 0, 0, f(16_777_216.0).into()),
        ("cvt.rz.f32.u32 %f4, %r1; mov.b32 %r4, %f4;", 0xFFFF_FFFF, 0, 0, f(4_294_967_040.0).into()),
        ("cvt.rni.f32.f32 %f4, %f1; mov.b32 %r4, %f4;", f(2.5), 0, 0, f(2.0).into()),
        ("cvt.sat.f32.f32 %f4, %f1; mov.b32 %r4, %f4;", f(7.0), 0, 0, f(1.0).into()),
        ("cvt.rn.bf16x2.f32 %r4, %f1, %f2;", f(1.0), f(2.0), 0, 0x3F80_4000),
        ("cvt.rn.f16x2.f32 %r4, %f1, %f2;", f(1.0), f(2.0), 0, 0x3C00_4000),
        ("{ .reg .b16 %h; cvt.rz.bf16.f32 %h, %f1; cvt.u32.u16 %r4, %h; }", 0x3F80_FFFF, 0, 0, 0x3F80),
        ("{ .reg .b16 %h; cvt.rn.bf16.f32 %h, %f1; cvt.u32.u16 %r4, %h; }", 0x3F80_8000, 0, 0, 0x3F80),
        ("{ .reg .b16 %h; cvt.rn.bf16.f32 %h, %f1; cvt.u32.u16 %r4, %h; }", 0x3F81_8000, 0, 0, 0x3F82),
        ("cvt.f64.f32 %fd1, %f1; cvt.rn.f32.f64 %f4, %fd1; mov.b32 %r4, %f4;", f(1.1), 0, 0, f(1.1).into()),
    ]);
}

#[test]
fn floats_round_once_and_nan_follows_the_rules() {
    let f = |v: f32| v.to_bits();
    let (one, tiny) = (f(1.0), f(f32::EPSILON / 4.0));
    check(&[
        (
            "fma.rn.f32 %f4, %f1, %f2, %f3; mov.b32 %r4, %f4;",
            0x3F80_0001,
            0x3F80_0001,
            f(-1.0),
            u64::from(f(2.0f32.powi(-22) + 2.0f32.powi(-46))),
        ),
        ("add.rp.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", one, tiny, 0, 0x3F80_0001),
        ("add.rm.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", one, tiny, 0, 0x3F80_0000),
        ("add.rz.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", f(-1.0), f(-f32::EPSILON), 0, 0xBF80_0001),
        ("add.ftz.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", 1, 0, 0, 0),
        ("add.sat.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", one, one, 0, one.into()),
        ("min.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", f(f32::NAN), one, 0, one.into()),
        ("max.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", 0x8000_0000, 0, 0, 0),
        ("max.NaN.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", f(f32::NAN), one, 0, 0x7FFF_FFFF),
        ("setp.lt.f32 %p1, %f1, %f2; selp.u32 %r4, 1, 2, %p1;", f(f32::NAN), one, 0, 2),
        ("setp.ltu.f32 %p1, %f1, %f2; selp.u32 %r4, 1, 2, %p1;", f(f32::NAN), one, 0, 1),
        ("setp.ne.f32 %p1, %f1, %f2; selp.u32 %r4, 1, 2, %p1;", f(f32::NAN), one, 0, 2),
        ("setp.num.f32 %p1, %f1, %f2; selp.u32 %r4, 1, 2, %p1;", f(f32::NAN), one, 0, 2),
        ("setp.eq.s32 %p2, %r1, %r1; setp.lt.and.s32 %p1|%p3, %r1, %r2, !%p2; selp.u32 %r4, 1, 2, %p1;", 1, 2, 0, 2),
        ("setp.eq.s32 %p2, %r1, %r1; setp.lt.and.s32 %p1|%p3, %r2, %r1, %p2; selp.u32 %r4, 1, 2, %p3;", 1, 2, 0, 1),
        ("ex2.approx.ftz.f32 %f4, %f1; mov.b32 %r4, %f4;", f(-140.0), 0, 0, 0),
        ("ex2.approx.f32 %f4, %f1; mov.b32 %r4, %f4;", f(-140.0), 0, 0, 1 << 9),
        ("rcp.rn.f32 %f4, %f1; mov.b32 %r4, %f4;", f(3.0), 0, 0, f(1.0 / 3.0).into()),
        ("sqrt.rn.f32 %f4, %f1; mov.b32 %r4, %f4;", f(2.0), 0, 0, f(2f32.sqrt()).into()),
        ("div.rn.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", f(1.0), f(10.0), 0, f(0.1).into()),
        ("copysign.f32 %f4, %f1, %f2; mov.b32 %r4, %f4;", f(-3.0), f(2.0), 0, f(-2.0).into()),
        ("testp.subnormal.f32 %p1, %f1; selp.u32 %r4, 1, 2, %p1;", 5, 0, 0, 1),
        ("fma.rn.bf16x2 %r4, %r1, %r2, %r3;", 0x3F80_4000, 0x4000_4000, 0x3F80_3F80, 0x4040_40A0),
        ("add.bf16x2 %r4, %r1, %r2;", 0x3F80_3F80, 0x3F80_3B80, 0, 0x4000_3F80),
        ("mul.f16x2 %r4, %r1, %r2;", 0x3C00_4000, 0x4000_4000, 0, 0x4000_4400),
        ("neg.bf16x2 %r4, %r1;", 0x3F80_BF80, 0, 0, 0xBF80_3F80),
        ("set.lt.u32.f32 %r4, %f1, %f2;", one, f(2.0), 0, 0xFFFF_FFFF),
        ("slct.b32.s32 %r4, %r1, %r2, %r3;", 5, 6, neg(-1), 6),
    ]);
}

/// One word of each lane of a warp: `%r1` is the lane, `%r4` the result.
fn warp(code: &str, options: &Options) -> Result<Vec<u32>, String> {
    let body = format!(
        "ld.param.u64 %rd1, [o]; mov.u32 %r1, %laneid; {code} mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd1, %rd2; st.global.u32 [%rd2], %r4;"
    );
    let m = module("", ".param .u64 o", &body).unwrap_or_else(|e| panic!("{code}: {e}"));
    let mut memory = Memory::new();
    let o = memory.alloc(128).unwrap();
    let r = launch(&m, &mut memory, 32, &[Arg::Ptr(o)], options);
    match r.findings.first() {
        Some(f) => Err(f.to_string()),
        None => {
            Ok(memory.bytes(o, 128).unwrap().chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect())
        }
    }
}

fn lanes(code: &str, want: impl Fn(u32) -> u32) {
    for schedule in [Schedule::Eager, Schedule::Descending, Schedule::Random(3)] {
        let got = warp(code, &Options { schedule, ..Options::default() }).unwrap_or_else(|e| panic!("{code}: {e}"));
        let want: Vec<u32> = (0..32).map(&want).collect();
        assert_eq!(got, want, "{code}");
    }
}

#[test]
fn lanes_exchange_vote_match_reduce_and_elect() {
    lanes("shfl.sync.bfly.b32 %r4, %r1, 5, 0x1f, 0xffffffff;", |l| l ^ 5);
    lanes("shfl.sync.idx.b32 %r4, %r1, 7, 0x1f, 0xffffffff;", |_| 7);
    lanes(
        "shfl.sync.up.b32 %r4|%p1, %r1, 3, 0, 0xffffffff; @!%p1 mov.u32 %r4, 99;",
        |l| if l < 3 { 99 } else { l - 3 },
    );
    lanes("shfl.sync.down.b32 %r4, %r1, 3, 0x1f, 0xffffffff;", |l| if l > 28 { l } else { l + 3 });
    // segments of eight lanes
    lanes("shfl.sync.down.b32 %r4, %r1, 3, 0x1807, 0xffffffff;", |l| if l % 8 > 4 { l } else { l + 3 });
    lanes("setp.lt.u32 %p1, %r1, 5; vote.sync.ballot.b32 %r4, %p1, 0xffffffff;", |_| 31);
    lanes("setp.lt.u32 %p1, %r1, 5; vote.sync.any.pred %p2, %p1, 0xffffffff; selp.u32 %r4, 1, 0, %p2;", |_| 1);
    lanes("setp.lt.u32 %p1, %r1, 5; vote.sync.all.pred %p2, !%p1, 0xffffffff; selp.u32 %r4, 1, 0, %p2;", |_| 0);
    lanes("and.b32 %r2, %r1, 3; match.any.sync.b32 %r4, %r2, 0xffffffff;", |l| 0x1111_1111 << (l % 4));
    lanes("match.all.sync.b32 %r4|%p1, %r1, 0xffffffff; selp.u32 %r4, 1, 0, %p1;", |_| 0);
    lanes("redux.sync.add.u32 %r4, %r1, 0xffffffff;", |_| 496);
    lanes("sub.s32 %r2, %r1, 20; redux.sync.min.s32 %r4, %r2, 0xffffffff;", |_| neg(-20));
    lanes("elect.sync %r4|%p1, 0xffffffff; @%p1 mov.u32 %r4, 77;", |l| if l == 0 { 77 } else { 0 });
    lanes("activemask.b32 %r4;", |_| u32::MAX);
    lanes("mov.u32 %r4, %lanemask_lt;", |l| (1 << l) - 1);
    // both halves of a warp at one instruction, each with its own mask
    lanes("setp.lt.u32 %p1, %r1, 16; selp.b32 %r2, 0xffff, 0xffff0000, %p1; redux.sync.add.u32 %r4, %r1, %r2;", |l| {
        if l < 16 { 120 } else { 376 }
    });
}

#[test]
fn lanes_that_part_meet_again() {
    // a loop of as many turns as the lane says, then a shuffle of all
    lanes(
        "mov.u32 %r2, 0; L: add.s32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, %r1; @%p1 bra L; shfl.sync.bfly.b32 %r4, %r2, 1, 0x1f, 0xffffffff;",
        |l| (l ^ 1).max(1),
    );
    // both sides of a branch, one of them written after the join
    lanes(
        "setp.lt.u32 %p1, %r1, 9; @%p1 bra B; mov.u32 %r4, 1; J: vote.sync.ballot.b32 %r3, %p1, 0xffffffff; add.s32 %r4, %r4, %r3; bra E;
         B: mov.u32 %r4, 2; bra J; E:",
        |l| if l < 9 { 513 } else { 512 },
    );
}

#[test]
fn scopes_shadow_registers_and_labels() {
    lanes(
        "mov.u32 %r4, 0; { .reg .b32 t; .reg .pred p; mov.u32 t, 5; setp.eq.u32 p, t, t; @p bra D; mov.u32 t, 6; D: add.s32 %r4, %r4, t; }
         { .reg .b32 t; .reg .pred p; mov.u32 t, 7; setp.ne.u32 p, t, t; @p bra D; add.s32 t, t, 1; D: add.s32 %r4, %r4, t; }",
        |_| 13,
    );
}

#[test]
fn atomics_of_all_lanes_add_up_in_any_order() {
    let body = "ld.param.u64 %rd1, [o]; mov.u32 %r1, %laneid;
        atom.global.add.u32 %r2, [%rd1], 3; red.global.max.u32 [%rd1+4], %r1; atom.global.inc.u32 %r3, [%rd1+8], 9;
        mov.u64 %rd2, 5000000000; red.global.add.u64 [%rd1+16], %rd2; atom.global.exch.b32 %r5, [%rd1+12], 8;
        L: ld.global.u32 %r6, [%rd1+24]; add.s32 %r7, %r6, 1; atom.global.cas.b32 %r8, [%rd1+24], %r6, %r7; setp.ne.u32 %p1, %r8, %r6; @%p1 bra L;";
    let m = module("", ".param .u64 o", body).unwrap();
    for schedule in [Schedule::Eager, Schedule::Random(1), Schedule::Lazy] {
        let mut memory = Memory::new();
        let o = memory.alloc_zeroed(32).unwrap();
        let config = Config { grid: [4, 1, 1], block: [64, 1, 1], shared: 0 };
        let r =
            m.launch(&mut memory, "k", &config, &[Arg::Ptr(o)], &Options { schedule, ..Options::default() }).unwrap();
        assert!(r.findings.is_empty(), "{}", r.findings[0]);
        let b = memory.bytes(o, 32).unwrap();
        let w = |n: usize| u32::from_le_bytes(b[4 * n..4 * n + 4].try_into().unwrap());
        assert_eq!((w(0), w(1), w(2), w(3), w(6)), (768, 31, 256 % 10, 8, 256));
        assert_eq!(u64::from_le_bytes(b[16..24].try_into().unwrap()), 256 * 5_000_000_000);
    }
}

/// `mma` of every supported type and depth, against a product in f64 of matrices laid out by the tables of 9.7.14.5.
#[test]
fn matrix_products_have_the_fragments_of_the_isa() {
    for (shape, ty, k, na, nb) in [
        ("m16n8k16", "bf16", 16, 4, 2),
        ("m16n8k16", "f16", 16, 4, 2),
        ("m16n8k8", "bf16", 8, 2, 1),
        ("m16n8k8", "f16", 8, 2, 1),
        ("m16n8k8", "tf32", 8, 4, 2),
        ("m16n8k4", "tf32", 4, 2, 1),
    ] {
        let value = |i: usize, j: usize| ((i * 7 + j * 13) % 17) as f64 - 8.0;
        let (a, b) = (|r: usize, c: usize| value(r, c + 1), |r: usize, c: usize| value(r + 3, c));
        let bits = |v: f64| match ty {
            "bf16" => u32::from(bf16::from_f64(v).to_bits()),
            "f16" => u32::from(f16::from_f64(v).to_bits()),
            _ => (v as f32).to_bits(),
        };
        let mut input = Vec::new();
        for l in 0..32usize {
            let (g, q) = (l / 4, l % 4);
            for i in 0..na {
                let row = g + 8 * (i & 1);
                input.push(if ty == "tf32" {
                    bits(a(row, q + 4 * (i >> 1)))
                } else {
                    bits(a(row, 2 * q + 8 * (i >> 1))) | bits(a(row, 2 * q + 1 + 8 * (i >> 1))) << 16
                });
            }
            for i in 0..nb {
                input.push(if ty == "tf32" {
                    bits(b(q + 4 * i, g))
                } else {
                    bits(b(2 * q + 8 * i, g)) | bits(b(2 * q + 1 + 8 * i, g)) << 16
                });
            }
        }
        let regs = |from: usize, n: usize| (from..from + n).map(|n| format!("%r{n}")).collect::<Vec<_>>().join(", ");
        let loads: String = (0..na + nb).map(|n| format!("ld.global.u32 %r{}, [%rd2+{}];\n", 10 + n, 4 * n)).collect();
        let c = "{%f1, %f2, %f3, %f4}";
        let body = format!(
            "ld.param.u64 %rd1, [i]; ld.param.u64 %rd3, [o]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, {}; add.s64 %rd2, %rd1, %rd2;
             {loads} mov.f32 %f1, 0f3F000000; mov.f32 %f2, %f1; mov.f32 %f3, %f1; mov.f32 %f4, %f1;
             mma.sync.aligned.{shape}.row.col.f32.{ty}.{ty}.f32 {c}, {{{}}}, {{{}}}, {c};
             mul.wide.u32 %rd2, %r1, 16; add.s64 %rd2, %rd3, %rd2; st.global.v4.f32 [%rd2], {c};",
            4 * (na + nb), regs(10, na), regs(10 + na, nb)
        );
        let m = module("", ".param .u64 i, .param .u64 o", &body).unwrap_or_else(|e| panic!("{e}"));
        let mut memory = Memory::new();
        let i = memory.alloc_from(&input.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
        let o = memory.alloc(512).unwrap();
        let r = launch(&m, &mut memory, 32, &[Arg::Ptr(i), Arg::Ptr(o)], &Options::default());
        assert!(r.findings.is_empty(), "{}", r.findings[0]);
        let out = memory.bytes(o, 512).unwrap();
        for (n, v) in out.chunks(4).enumerate() {
            let (l, i) = (n / 4, n % 4);
            let (row, col) = (l / 4 + 8 * (i >> 1), 2 * (l % 4) + (i & 1));
            let want: f64 = 0.5 + (0..k).map(|x| a(row, x) * b(x, col)).sum::<f64>();
            assert_eq!(
                f64::from(f32::from_le_bytes(v.try_into().unwrap())),
                want,
                "{shape} {ty} lane {l} register {i}"
            );
        }
    }
}

#[test]
fn local_memory_constants_and_generic_addresses() {
    let head = ".const .align 4 .u32 table[3] = {10, 20, 30};\n.global .align 8 .b8 cell[8];";
    let body = ".local .align 8 .b8 depot[16]; .shared .align 8 .b8 box[128];
        ld.param.u64 %rd1, [o]; mov.u32 %r1, %tid.x; mov.u64 %rd2, depot; cvta.local.u64 %rd3, %rd2; st.local.u32 [%rd2+4], %r1; ld.u32 %r2, [%rd3+4];
        mov.u64 %rd4, box; cvta.shared.u64 %rd5, %rd4; mul.wide.u32 %rd6, %r1, 4; add.s64 %rd5, %rd5, %rd6; st.u32 [%rd5], %r2;
        cvt.u32.u64 %r5, %rd5; ld.shared.u32 %r6, [%r5]; ld.const.u32 %r7, [table+8]; add.s32 %r4, %r6, %r7;
        mov.u64 %rd7, cell; st.global.u32 [%rd7], 4; ld.global.u32 %r8, [%rd7]; add.s32 %r4, %r4, %r8;
        add.s64 %rd1, %rd1, %rd6; st.global.u32 [%rd1], %r4;";
    let m = module(head, ".param .u64 o", body).unwrap();
    let mut memory = Memory::new();
    let o = memory.alloc(128).unwrap();
    let r = launch(&m, &mut memory, 32, &[Arg::Ptr(o)], &Options::default());
    assert!(r.findings.is_empty(), "{}", r.findings[0]);
    let out = memory.bytes(o, 128).unwrap();
    assert!(out.chunks(4).enumerate().all(|(l, v)| u32::from_le_bytes(v.try_into().unwrap()) == l as u32 + 34));
}

#[test]
fn carries_go_from_one_sum_to_the_next() {
    let m = u32::MAX;
    check(&[
        ("add.cc.u32 %r4, %r1, %r2; addc.u32 %r4, %r3, 0;", m, 1, 7, 8),
        ("add.cc.u32 %r4, %r1, %r2; addc.cc.u32 %r4, %r3, %r1; addc.u32 %r4, 0, 0;", m, 1, 0, 1),
        ("sub.cc.u32 %r4, %r1, %r2; subc.u32 %r4, %r3, 0;", 0, 1, 7, 6),
        ("mad.lo.cc.u32 %r4, %r1, %r2, %r3; madc.hi.u32 %r4, %r1, %r2, 0;", m, m, m, u64::from(m)),
        ("add.cc.u32 %r4, %r1, %r2; addc.u32 %r4, %r3, 0;", 1, 1, 7, 7),
        ("mul24.lo.u32 %r4, %r1, %r2;", 0xFF00_0003, 5, 0, 15),
        ("mul24.hi.s32 %r4, %r1, %r2;", 0x00FF_FFFF, 0x1_0000, 0, u64::from(m)),
        ("dp2a.lo.u32.u32 %r4, %r1, %r2, %r3;", 0x0003_0002, 0x0504, 1, 24),
        ("dp2a.hi.s32.s32 %r4, %r1, %r2, %r3;", 0xFFFF_0002, 0x0504_0000, 0, 3),
        ("bmsk.clamp.b32 %r4, %r1, %r2;", 24, 12, 0, 0xFF00_0000),
        ("szext.wrap.s32 %r4, %r1, %r2;", 0xF8, 4, 0, 0xFFFF_FFF8),
        ("vshr.u32.u32.u32.clamp.add %r4, %r1, %r2, %r3;", 256, 4, 5, 21),
        ("cvt.pack.sat.u8.s32.b32 %r4, %r1, %r2, %r3;", neg(-257), 257, 0xF839_B0ED, 0xB0ED_00FF),
        ("mov.u32 %r4, WARP_SZ;", 0, 0, 0, 32),
    ]);
}

#[test]
fn conversions_to_tf32_keep_ten_bits() {
    check(&[
        ("cvt.rna.tf32.f32 %r4, %f1;", 0x3F80_1000, 0, 0, 0x3F80_2000),
        ("cvt.rn.tf32.f32 %r4, %f1;", 0x3F80_1000, 0, 0, 0x3F80_0000),
        ("cvt.rn.tf32.f32 %r4, %f1;", 0x3F80_3000, 0, 0, 0x3F80_4000),
        ("cvt.rn.tf32.f32 %r4, %f1;", 0x3F80_1001, 0, 0, 0x3F80_2000),
        ("cvt.rz.tf32.f32 %r4, %f1;", 0xBF80_1FFF, 0, 0, 0xBF80_0000),
        ("cvt.rna.tf32.f32 %r4, %f1;", 0xBF80_1FFF, 0, 0, 0xBF80_2000),
        ("cvt.rna.tf32.f32 %r4, %f1;", 0x7F7F_F000, 0, 0, 0x7F80_0000),
        ("cvt.rna.tf32.f32 %r4, %f1;", 0xFF80_0000, 0, 0, 0xFF80_0000),
        ("cvt.rna.tf32.f32 %r4, %f1;", 0x7FC0_0000, 0, 0, 0x7FFF_FFFF),
        ("cvt.rn.relu.tf32.f32 %r4, %f1;", 0xBF80_1000, 0, 0, 0),
    ]);
}

#[test]
fn bytes_as_floats_and_halves_are_converted_and_compared() {
    let f = |v: f32| v.to_bits();
    check(&[
        (
            "{ .reg .b16 %h; cvt.rn.satfinite.e4m3x2.f32 %h, %f1, %f2; cvt.u32.u16 %r4, %h; }",
            f(0.40625),
            f(12.9),
            0,
            0x2D55,
        ),
        (
            "{ .reg .b16 %h; cvt.rn.satfinite.e5m2x2.f32 %h, %f1, %f2; cvt.u32.u16 %r4, %h; }",
            f(0.375),
            f(-5256.6),
            0,
            0x36ED,
        ),
        ("{ .reg .b16 %h; cvt.u16.u32 %h, %r1; cvt.rn.f16x2.e4m3x2 %r4, %h; }", 0x2D55, 0, 0, 0x3680_4A80),
        ("cvt.rn.relu.f16x2.f32 %r4, %f1, %f2;", f(-1.0), f(1.0), 0, 0x3C00),
        ("set.gt.f16x2.f16x2 %r4, %r1, %r2;", 0x4000_3C00, 0x3C00_4000, 0, 0x3C00_0000),
        ("set.gtu.u32.f16x2 %r4, %r1, %r2;", 0x7E00_3C00, 0x3C00_4000, 0, 0xFFFF_0000),
        ("sad.u32 %r4, %r1, %r2, %r3;", 5, 9, 1, 5),
        ("ex2.approx.f16x2 %r4, %r1;", 0x4000_3C00, 0, 0, 0x4400_4000),
        ("tanh.approx.bf16x2 %r4, %r1;", 0x0000_4120, 0, 0, 0x0000_3F80),
    ]);
}

/// Parameters in `.param` and in registers, results, vectors, a function in a function, a return from its middle.
#[test]
fn functions_are_called_with_parameters_and_results() {
    let head = ".func (.param .b32 out) twice(.param .b32 in) { .reg .u32 x; ld.param.u32 x, [in]; add.u32 x, x, x; st.param.u32 [out], x; ret; }
        .func (.reg .u32 out, .reg .pred big) more(.reg .u32 x) { .reg .pred p; .param .b32 a; .param .b32 b;
            st.param.b32 [a], x; call.uni (b), twice, (a); ld.param.b32 out, [b]; setp.gt.u32 big, out, 20; @big ret; add.u32 out, out, 100; ret; }
        .func (.reg .v2 .u32 out) swap(.reg .v2 .u32 in) { mov.u32 out.x, in.y; mov.u32 out.y, in.x; ret; }
        .func endless() { call endless; ret; }";
    let body = "ld.param.u64 %rd1, [o]; mov.u32 %r1, %laneid; .reg .v2 .u32 v;
        call (%r4, %p1), more, (%r1); @%p1 add.u32 %r4, %r4, 1000; mov.u32 v.x, %r4; mov.u32 v.y, 5; call (v), swap, (v);
        sub.u32 %r4, v.y, v.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd1, %rd2; st.global.u32 [%rd2], %r4;";
    let m = module(head, ".param .u64 o", body).unwrap_or_else(|e| panic!("{e}"));
    let mut memory = Memory::new();
    let o = memory.alloc(128).unwrap();
    let r = launch(&m, &mut memory, 32, &[Arg::Ptr(o)], &Options::default());
    assert!(r.findings.is_empty(), "{}", r.findings[0]);
    for (l, v) in memory.bytes(o, 128).unwrap().chunks(4).enumerate() {
        let (l, got) = (l as u32, u32::from_le_bytes(v.try_into().unwrap()));
        assert_eq!(got, 2 * l + if l > 10 { 995 } else { 95 });
    }
    let said =
        module(head, ".param .u64 o", "call endless;").and_then(|m| m.check().map(|_| m)).err().unwrap().to_string();
    assert!(said.contains("`endless` calls itself"), "{said}");
}

/// `mma` of bytes against a product of the matrices that the tables of 9.7.14.5 lay out.
#[test]
fn products_of_bytes_have_the_fragments_of_the_isa() {
    for (ty, k) in [("s8", 32usize), ("u8", 32), ("s8", 16), ("e4m3", 32)] {
        let (na, nb) = (k / 8, k / 16);
        let byte =
            |r: usize, c: usize| if ty == "e4m3" { ((r * 5 + c * 3) % 0x50) as u8 } else { (r * 37 + c * 11) as u8 };
        let value = |b: u8| match ty {
            "s8" => f64::from(b as i8),
            "u8" => f64::from(b),
            _ if b >> 3 == 0 => f64::from(b) / 512.0,
            _ => (1.0 + f64::from(b & 7) / 8.0) * 2f64.powi(i32::from(b >> 3) - 7),
        };
        let mut input = Vec::new();
        for l in 0..32 {
            let (g, q) = (l / 4, l % 4);
            for i in 0..na {
                input.extend((0..4).map(|e| byte(g + 8 * (i & 1), 16 * (i >> 1) + 4 * q + e)));
            }
            for i in 0..nb {
                input.extend((0..4).map(|e| byte(16 * i + 4 * q + e + 50, g)));
            }
        }
        let list = |from: usize, n: usize| (from..from + n).map(|n| format!("%r{n}")).collect::<Vec<_>>().join(", ");
        let loads: String = (0..na + nb).map(|n| format!("ld.global.u32 %r{}, [%rd2+{}];\n", 10 + n, 4 * n)).collect();
        let d = if ty == "e4m3" { "f32" } else { "s32" };
        let body = format!(
            "ld.param.u64 %rd1, [i]; ld.param.u64 %rd3, [o]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, {}; add.s64 %rd2, %rd1, %rd2;
             {loads} mov.b32 %r2, 0; mov.b32 %r3, 0; mov.b32 %r4, 0; mov.b32 %r5, 0;
             mma.sync.aligned.m16n8k{k}.row.col.{d}.{ty}.{ty}.{d} {{%r2, %r3, %r4, %r5}}, {{{}}}, {{{}}}, {{%r2, %r3, %r4, %r5}};
             mul.wide.u32 %rd2, %r1, 16; add.s64 %rd2, %rd3, %rd2; st.global.v4.b32 [%rd2], {{%r2, %r3, %r4, %r5}};",
            4 * (na + nb), list(10, na), list(10 + na, nb)
        );
        let m = module("", ".param .u64 i, .param .u64 o", &body).unwrap_or_else(|e| panic!("{e}"));
        let mut memory = Memory::new();
        let (i, o) = (memory.alloc_from(&input).unwrap(), memory.alloc(512).unwrap());
        let r = launch(&m, &mut memory, 32, &[Arg::Ptr(i), Arg::Ptr(o)], &Options::default());
        assert!(r.findings.is_empty(), "{}", r.findings[0]);
        for (n, v) in memory.bytes(o, 512).unwrap().chunks(4).enumerate() {
            let (l, i, bits) = (n / 4, n % 4, u32::from_le_bytes(v.try_into().unwrap()));
            let (row, col) = (l / 4 + 8 * (i >> 1), 2 * (l % 4) + (i & 1));
            let want: f64 = (0..k).map(|x| value(byte(row, x)) * value(byte(x + 50, col))).sum();
            let got = if d == "f32" { f64::from(f32::from_bits(bits)) } else { f64::from(bits as i32) };
            assert_eq!(got, f64::from(want as f32), "m16n8k{k} {ty} lane {l} register {i}");
        }
    }
}

/// Bulk stores that combine with what is there, and arrivals that copies make.
#[test]
fn bulk_reductions_and_arrivals_of_copies() {
    let body = ".shared .align 128 .b8 sh[512]; .shared .align 8 .b8 bar[8];
        ld.param.u64 %rd1, [o]; mov.u32 %r1, %tid.x; mov.u32 %r9, sh; mov.u32 %r8, bar; shl.b32 %r2, %r1, 2; add.s32 %r2, %r2, %r9;
        setp.eq.u32 %p1, %r1, 0; @%p1 mbarrier.init.shared.b64 [%r8], 32; fence.mbarrier_init.release.cluster; bar.sync 0;
        mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd1, %rd2; cp.async.ca.shared.global [%r2], [%rd2], 4;
        cp.async.mbarrier.arrive.noinc.shared.b64 [%r8];
        W: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r8], 0; @!%p2 bra W;
        xor.b32 %r3, %r2, 4; ld.shared.u32 %r4, [%r3]; bar.sync 0; st.shared.u32 [%r2], %r4; fence.proxy.async.shared::cta; bar.sync 0;
        @%p1 cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%rd1], [%r9], 128;
        @%p1 cp.async.bulk.commit_group; @%p1 cp.async.bulk.wait_group 0; barrier.cluster.arrive; barrier.cluster.wait;";
    let m = module("", ".param .u64 o", body).unwrap_or_else(|e| panic!("{e}"));
    for schedule in [Schedule::Eager, Schedule::Lazy, Schedule::Ascending, Schedule::Random(4), Schedule::Random(9)] {
        let mut memory = Memory::new();
        let o = memory.alloc_from(&(0..32u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
        let r = launch(&m, &mut memory, 32, &[Arg::Ptr(o)], &Options { schedule, ..Options::default() });
        assert!(r.findings.is_empty(), "{schedule}: {}", r.findings[0]);
        let out = memory.bytes(o, 128).unwrap();
        for (l, v) in out.chunks(4).enumerate() {
            assert_eq!(u32::from_le_bytes(v.try_into().unwrap()) as usize, l + (l ^ 1), "{schedule}");
        }
    }
    // without the wait the copies are a race
    let m = module("", ".param .u64 o", &body.replace("@!%p2 bra W;", "")).unwrap();
    let mut memory = Memory::new();
    let o = memory.alloc_zeroed(128).unwrap();
    let options = Options { schedule: Schedule::Lazy, ..Options::default() };
    assert_eq!(launch(&m, &mut memory, 32, &[Arg::Ptr(o)], &options).findings[0].kind, ptxvm::Kind::Race);
}
