//! What large kernels lean on: structs of tensor maps among kilobytes of parameters, and registers that warp groups trade.

use ptxvm::{Arg, Config, Kind, Memory, Module, Options, Schedule};

use crate::probes::data::words;

const SCHEDULES: [Schedule; 5] =
    [Schedule::Eager, Schedule::Lazy, Schedule::Ascending, Schedule::Descending, Schedule::Random(3)];

fn module(params: &str, body: &str) -> Module {
    let text = format!(
        ".version 8.4\n.target sm_90a\n.address_size 64\n.visible .entry k({params}) {{
        .reg .pred %p<4>; .reg .b32 %r<16>; .reg .b64 %rd<16>;\n{body}\nret; }}\n"
    );
    Module::parse("k.ptx", &text).unwrap()
}

/// Block b loads 8 halves by map `97 b % 128`, which lies among others behind the first bytes of a struct.
const BY_INDEX: &str = ".shared .align 128 .b8 to[16]; .shared .align 8 .b8 bar[8];
    mov.b64 %rd1, p; cvta.param.u64 %rd1, %rd1; mov.u32 %r1, %ctaid.x; mul.lo.s32 %r2, %r1, 97; and.b32 %r2, %r2, 127;
    mul.wide.u32 %rd2, %r2, 128; add.s64 %rd2, %rd1, %rd2; add.s64 %rd2, %rd2, FIRST; mov.u32 %r3, to; mov.u32 %r4, bar;
    mov.u32 %r5, 8;
    mbarrier.init.shared::cta.b64 [%r4], 1; fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r4], 16;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd2, {%r5, %r5}], [%r4];
    W: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r4], 0; @!%p1 bra W;
    ld.shared.u32 %r6, [%r3]; ld.param.u64 %rd3, [o]; mul.wide.u32 %rd4, %r1, 4; add.s64 %rd3, %rd3, %rd4;
    ld.param.u32 %r7, [p+4]; add.s32 %r6, %r6, %r7; st.global.u32 [%rd3], %r6;";

#[test]
fn maps_in_a_struct_are_chosen_while_a_kernel_runs() {
    for first in [64, 1024, 16320] {
        let params = format!(".param .align 64 .b8 p[{}], .param .u64 o", first + 128 * 128);
        let m = module(&params, &BY_INDEX.replace("FIRST", &first.to_string()));
        for schedule in SCHEDULES {
            let mut memory = Memory::new();
            let mut p = vec![0u8; first];
            p[4] = 5;
            for n in 0..128u16 {
                let rows: Vec<u8> = (0..16 * 16).flat_map(|_| n.to_le_bytes()).collect();
                let base = memory.alloc_from(&rows).unwrap();
                p.extend(words(&mut memory, base, &[16, 16], &[8, 1], 0).iter().flat_map(|w| w.to_le_bytes()));
            }
            let o = memory.alloc(4 * 128).unwrap();
            let config = Config { grid: [128, 1, 1], block: [1, 1, 1], shared: 0 };
            let args = [Arg::Bytes(p), Arg::Ptr(o)];
            let options = Options { schedule, ..Options::default() };
            let r = m.launch(&mut memory, "k", &config, &args, &options).unwrap();
            assert!(r.findings.is_empty(), "{schedule}: {}", r.findings[0]);
            for (b, got) in memory.bytes(o, 512).unwrap().chunks(4).enumerate() {
                let n = (b * 97 % 128) as u32;
                assert_eq!(u32::from_le_bytes(got.try_into().unwrap()), n * 0x10001 + 5, "{schedule}, block {b}");
            }
        }
    }
}

#[test]
fn a_map_that_is_not_aligned_or_none_is_refused() {
    for (first, kind) in [(96, Kind::Misaligned), (64 + 64, Kind::Descriptor)] {
        let params = ".param .align 64 .b8 p[32640], .param .u64 o";
        let m = module(params, &BY_INDEX.replace("FIRST", &first.to_string()));
        let mut memory = Memory::new();
        let base = memory.alloc_from(&[0; 512]).unwrap();
        let map = words(&mut memory, base, &[16, 16], &[8, 1], 0);
        let mut p = vec![0u8; 64];
        p.extend(map.iter().flat_map(|w| w.to_le_bytes()));
        p.resize(32640, 0);
        let o = memory.alloc(4).unwrap();
        let config = Config { grid: [1, 1, 1], block: [1, 1, 1], shared: 0 };
        let r = m.launch(&mut memory, "k", &config, &[Arg::Bytes(p), Arg::Ptr(o)], &Options::default()).unwrap();
        assert_eq!(r.findings[0].kind, kind, "{}", r.findings[0]);
    }
}

#[test]
fn parameters_are_as_many_as_a_driver_takes() {
    let of = |bytes: usize| module(&format!(".param .align 4 .b8 p[{bytes}], .param .u64 o"), "");
    of(32752).check().unwrap();
    assert!(of(32760).check().is_err());
}

/// Three warp groups of 168 registers a thread: the first gives some, the others take.
fn trade(give: u32, take: u32) -> Module {
    module(
        "",
        &format!(
            "mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 128; @%p1 bra GIVE;
            setmaxnreg.inc.sync.aligned.u32 {take}; bra.uni END;
            GIVE: setmaxnreg.dec.sync.aligned.u32 {give}; END:"
        ),
    )
}

#[test]
fn registers_are_taken_when_there_are_enough() {
    let run = |m: &Module, schedule| {
        let config = Config { grid: [2, 1, 1], block: [384, 1, 1], shared: 0 };
        let options = Options { schedule, ..Options::default() };
        let r = m.launch(&mut Memory::new(), "k", &config, &[], &options).unwrap();
        r.findings.first().map(|f| f.kind)
    };
    for schedule in SCHEDULES {
        // 24 + 2 * 240 = 3 * 168, whichever group comes first
        assert_eq!(run(&trade(24, 240), schedule), None, "{schedule}");
        assert_eq!(run(&trade(40, 232), schedule), None, "{schedule}");
        assert_eq!(run(&trade(32, 240), schedule), Some(Kind::Deadlock), "{schedule}");
        assert_eq!(run(&trade(176, 160), schedule), Some(Kind::Descriptor), "{schedule}");
    }
}
