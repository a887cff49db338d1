//! `wgmma` of every shape, type and layout, against products of matrices laid out element by element as the tables of 9.7.15.5
//! say.

use std::fmt::Write;

use half::{bf16, f16};
use ptxvm::{Arg, Config, Memory, Module, Options, Schedule};

/// One `wgmma`.
#[derive(Debug, Clone, Copy)]
struct Case {
    n: usize,
    /// Types of A and of B.
    types: [&'static str; 2],
    /// Bytes of the swizzle of A and of B, and whether each is M- or N-major.
    swizzle: [usize; 2],
    trans: [bool; 2],
    a_in_registers: bool,
    /// Whether D is added to, and the signs of A and B.
    add: bool,
    signs: [i32; 2],
}

const PLAIN: Case = Case {
    n: 64,
    types: ["bf16", "bf16"],
    swizzle: [128, 128],
    trans: [false, false],
    a_in_registers: false,
    add: true,
    signs: [1, 1],
};

/// Bytes of an operand in shared memory, and where the second begins.
const ROOM: usize = 32768;

fn bytes_of(ty: &str) -> usize {
    match ty {
        "tf32" => 4,
        "e4m3" | "e5m2" => 1,
        _ => 2,
    }
}

/// A small integer, which every format has.
fn value(side: usize, row: usize, k: usize) -> i32 {
    [(row * 7 + k * 13) % 17, (row * 11 + k * 5 + row / 8) % 15][side] as i32 - 8
}

/// Its bits, lowest byte first.
fn bits(ty: &str, v: i32) -> Vec<u8> {
    let x = v as f32;
    match ty {
        "bf16" => bf16::from_f32(x).to_le_bytes().to_vec(),
        "f16" => f16::from_f32(x).to_le_bytes().to_vec(),
        "tf32" => x.to_le_bytes().to_vec(),
        "e5m2" => vec![(f16::from_f32(x).to_bits() >> 8) as u8],
        // sign, exponent with a bias of 7, three bits of the fraction: those of an f32 after rebasing
        _ if v == 0 => vec![0],
        _ => vec![((x.to_bits() >> 24 & 0x80) | ((x.to_bits() >> 20 & 0x7FF) - ((127 - 7) << 3))) as u8],
    }
}

/// Leading and stride byte offsets of an operand of `rows` that is laid out densely.
fn strides(rows: usize, swizzle: usize, trans: bool) -> (usize, usize) {
    let w = (swizzle / 16).max(1);
    match (trans, swizzle) {
        (false, 0) => (rows * 16, 128),
        (false, _) => (16, 128 * w),
        (true, 0) => (rows * 16, 128),
        // eight k of 16w bytes each; then the next eight k; then the next 8w rows
        (true, _) => (2 * 128 * w, 128 * w),
    }
}

/// Where element (row, k) of `size` bytes lies.
fn place(row: usize, k: usize, size: usize, rows: usize, swizzle: usize, trans: bool) -> usize {
    let w = (swizzle / 16).max(1);
    let (lbo, sbo) = strides(rows, swizzle, trans);
    let at = match (trans, swizzle) {
        (false, 0) => row % 8 * 16 + row / 8 * sbo + k * size / 16 * lbo + k * size % 16,
        (false, _) => row % 8 * 16 * w + row / 8 * sbo + k * size,
        (true, 0) => row % 8 * 2 + row / 8 * sbo + k % 8 * 16 + k / 8 * lbo,
        (true, _) => row % 8 * 2 + row / 8 % w * 16 + row / 8 / w * lbo + k % 8 * 16 * w + k / 8 * sbo,
    };
    // operands begin at multiples of 1,024: the pattern is that of the offset
    at ^ (at >> 7 & (w - 1)) << 4
}

fn descriptor(rows: usize, swizzle: usize, trans: bool) -> u64 {
    let (lbo, sbo) = strides(rows, swizzle, trans);
    let mode = match swizzle {
        128 => 1u64,
        64 => 2,
        32 => 3,
        _ => 0,
    };
    (lbo as u64 >> 4) << 16 | (sbo as u64 >> 4) << 32 | mode << 62
}

impl Case {
    fn k(&self) -> usize {
        32 / bytes_of(self.types[0])
    }

    fn text(&self) -> String {
        let list = |name: &str, n: usize| (0..n).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", ");
        let mut body = String::new();
        for i in 0..self.n / 2 {
            // 0.5 to be added to, or what must not be looked at
            writeln!(body, "mov.b32 %f{i}, {};", if self.add { "0f3F000000" } else { "0f7FC00000" }).unwrap();
        }
        if self.a_in_registers {
            for i in 0..4 {
                writeln!(body, "ld.global.u32 %a{i}, [%rd3+{}];", 4 * i).unwrap();
            }
        }
        let a = if self.a_in_registers { format!("{{{}}}", list("a", 4)) } else { "%rd5".into() };
        let turns = bytes_of(self.types[0]) == 2;
        let trans = match (turns, self.a_in_registers) {
            (false, _) => String::new(),
            (true, true) => format!(", {}", i32::from(self.trans[1])),
            (true, false) => format!(", {}, {}", i32::from(self.trans[0]), i32::from(self.trans[1])),
        };
        writeln!(
            body,
            "wgmma.fence.sync.aligned;
            wgmma.mma_async.sync.aligned.m64n{}k{}.f32.{}.{} {{{}}}, {a}, %rd6, %p2, {}, {}{trans};
            wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
            self.n,
            self.k(),
            self.types[0],
            self.types[1],
            list("f", self.n / 2),
            self.signs[0],
            self.signs[1],
        )
        .unwrap();
        for i in 0..self.n / 2 {
            writeln!(body, "st.global.f32 [%rd4+{}], %f{i};", 4 * i).unwrap();
        }
        format!(
            ".version 8.4\n.target sm_90a\n.address_size 64\n.extern .shared .align 16 .b8 sh[];
            .visible .entry k(.param .u64 i, .param .u64 o) {{
            .reg .pred %p<4>; .reg .b32 %r<16>; .reg .b64 %rd<8>; .reg .f32 %f<128>; .reg .b32 %a<4>; .reg .b32 %v<4>;
            ld.param.u64 %rd1, [i]; ld.param.u64 %rd2, [o]; mov.u32 %r1, %tid.x;
            mov.u32 %r2, sh; add.s32 %r2, %r2, 1023; and.b32 %r2, %r2, -1024;
            mul.wide.u32 %rd3, %r1, 16; add.s64 %rd3, %rd1, %rd3;
            mul.wide.u32 %rd4, %r1, {}; add.s64 %rd4, %rd2, %rd4;
            shl.b32 %r3, %r1, 4; add.s32 %r3, %r3, %r2; mov.u32 %r4, 0;
            L: ld.global.v4.u32 {{%v0, %v1, %v2, %v3}}, [%rd3]; st.shared.v4.u32 [%r3], {{%v0, %v1, %v2, %v3}};
            add.s64 %rd3, %rd3, 2048; add.s32 %r3, %r3, 2048; add.s32 %r4, %r4, 1; setp.lt.u32 %p1, %r4, {}; @%p1 bra L;
            fence.proxy.async.shared::cta; bar.sync 0;
            shr.u32 %r5, %r2, 4; cvt.u64.u32 %rd5, %r5; or.b64 %rd5, %rd5, {};
            add.s32 %r6, %r2, {ROOM}; shr.u32 %r6, %r6, 4; cvt.u64.u32 %rd6, %r6; or.b64 %rd6, %rd6, {};
            setp.eq.u32 %p2, {}, 1;
            {body} ret; }}\n",
            4 * self.n / 2,
            2 * ROOM / 2048,
            descriptor(64, self.swizzle[0], self.trans[0]),
            descriptor(self.n, self.swizzle[1], self.trans[1]),
            u32::from(self.add),
        )
    }

    /// The operands in shared memory, then what each thread has of A in registers.
    fn input(&self) -> Vec<u8> {
        let mut all = vec![0; 2 * ROOM + 128 * 16];
        for (side, rows) in [(0, 64), (1, self.n)] {
            let size = bytes_of(self.types[side]);
            for row in 0..rows {
                for k in 0..self.k() {
                    let at = side * ROOM + place(row, k, size, rows, self.swizzle[side], self.trans[side]);
                    all[at..at + size].copy_from_slice(&bits(self.types[side], value(side, row, k)));
                }
            }
        }
        let size = bytes_of(self.types[0]);
        for t in 0..128 {
            let (w, g, q) = (t / 32, t % 32 / 4, t % 4);
            for i in 0..4 {
                for e in 0..4 / size {
                    let (row, k) = (16 * w + g + 8 * (i & 1), 4 / size * (q + 4 * (i >> 1)) + e);
                    let at = 2 * ROOM + 16 * t + 4 * i + size * e;
                    all[at..at + size].copy_from_slice(&bits(self.types[0], value(0, row, k)));
                }
            }
        }
        all
    }

    fn check(&self, schedule: Schedule) {
        let m = Module::parse("k.ptx", &self.text()).unwrap_or_else(|e| panic!("{self:?}: {e}"));
        let mut memory = Memory::new();
        let (i, o) = (memory.alloc_from(&self.input()).unwrap(), memory.alloc(64 * 4 * self.n as u64).unwrap());
        let config = Config { grid: [1, 1, 1], block: [128, 1, 1], shared: 2 * ROOM as u32 + 1024 };
        let options = Options { schedule, ..Options::default() };
        let r = m.launch(&mut memory, "k", &config, &[Arg::Ptr(i), Arg::Ptr(o)], &options).unwrap();
        assert!(r.findings.is_empty(), "{self:?}: {}", r.findings[0]);
        let out = memory.bytes(o, 64 * 4 * self.n as u64).unwrap();
        for (at, v) in out.chunks(4).enumerate() {
            let (t, i) = (at / (self.n / 2), at % (self.n / 2));
            let row = 16 * (t / 32) + t % 32 / 4 + 8 * (i >> 1 & 1);
            let col = 8 * (i >> 2) + 2 * (t % 4) + (i & 1);
            let sum: i32 = (0..self.k()).map(|k| value(0, row, k) * value(1, col, k)).sum();
            let want = f64::from(self.signs[0] * self.signs[1] * sum) + if self.add { 0.5 } else { 0.0 };
            let got = f32::from_le_bytes(v.try_into().unwrap());
            assert_eq!(f64::from(got), want, "{self:?}: row {row}, column {col}");
        }
    }
}

#[test]
fn every_width_has_the_fragments_of_the_isa() {
    for n in (8..=256).step_by(8) {
        Case { n, ..PLAIN }.check(Schedule::Lazy);
        Case { n, a_in_registers: true, types: ["f16", "f16"], ..PLAIN }.check(Schedule::Eager);
    }
}

#[test]
fn operands_lie_where_descriptors_say() {
    for swizzle in [0, 32, 64, 128] {
        for trans in [false, true] {
            Case { swizzle: [swizzle, 128], trans: [trans, false], ..PLAIN }.check(Schedule::Eager);
            for n in [64, 256] {
                Case { n, swizzle: [128, swizzle], trans: [false, trans], ..PLAIN }.check(Schedule::Eager);
            }
            Case { swizzle: [32, swizzle], trans: [true, trans], a_in_registers: true, ..PLAIN }.check(Schedule::Lazy);
        }
    }
}

#[test]
fn types_of_one_and_four_bytes_are_k_major() {
    for types in [["tf32"; 2], ["e4m3"; 2], ["e5m2"; 2], ["e4m3", "e5m2"], ["e5m2", "e4m3"]] {
        for n in [8, 24, 128, 256] {
            for swizzle in [0, 32, 64, 128] {
                Case { n, types, swizzle: [swizzle; 2], ..PLAIN }.check(Schedule::Eager);
            }
            Case { n, types, a_in_registers: true, ..PLAIN }.check(Schedule::Lazy);
        }
    }
}

#[test]
fn scale_d_and_signs_are_heeded() {
    for types in [["bf16"; 2], ["tf32"; 2], ["e5m2"; 2]] {
        for signs in [[1, 1], [-1, 1], [1, -1], [-1, -1]] {
            for a_in_registers in [false, true] {
                Case { types, signs, a_in_registers, add: false, ..PLAIN }.check(Schedule::Lazy);
                Case { types, signs, a_in_registers, ..PLAIN }.check(Schedule::Eager);
            }
        }
    }
}

#[test]
fn what_the_isa_does_not_have_is_refused() {
    let good = PLAIN.text();
    for (from, to, message) in [
        ("m64n64k16", "m64n64k8", "found k8"),
        ("m64n64k16", "m64n60k16", "expected a shape"),
        ("m64n64k16", "m64n264k16", "expected a shape"),
        ("m64n64k16.f32.bf16.bf16", "m64n64k8.f32.tf32.tf32", "expected 6"),
        ("f32.bf16.bf16", "f32.bf16.f16", "expected f32 accumulators"),
        (", 1, 1, 0, 0;", ", 1, 2, 0, 0;", "expected 1 or -1"),
    ] {
        assert!(good.contains(from), "{from}");
        let m = Module::parse("k.ptx", &good.replace(from, to)).unwrap();
        let e = m.check().unwrap_err().to_string();
        assert!(e.contains(message), "{from} to {to}: {e}");
    }
}
