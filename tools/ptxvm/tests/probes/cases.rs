//! The cases: inputs, launches, references in f64. `small` ones are for mutants: one block, rings that wrap.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use half::bf16;
use ptxvm::{Arg, Memory};

use super::data::*;
use super::{Bench, Outcome};
use crate::noise::normals;

/// What a case gives, or a finding.
type Given = Result<Vec<Outcome>, String>;

pub struct Case {
    pub name: &'static str,
    pub files: &'static [&'static str],
    pub run: fn(&mut Bench, bool) -> Given,
}

macro_rules! case {
    ($name:ident, $file:literal) => {
        Case { name: stringify!($name), files: &[$file], run: $name }
    };
}

pub const CASES: &[Case] = &[
    case!(gemm_wgmma, "gemm_wgmma.sm_90a"),
    case!(gemm_mma, "gemm_mma.sm_80"),
    case!(attn_fwd, "attn_fwd.sm_90a"),
    case!(attn_bwd, "attn_bwd.sm_90a"),
    case!(layouts, "layouts.sm_90a"),
    case!(linear, "linear.sm_90a"),
    case!(attn_dims, "attn_dims.sm_90a"),
    case!(attn_mma, "attn_mma.sm_80"),
    case!(conv, "conv.sm_90a"),
    case!(noise, "step.sm_80"),
    case!(step, "step.sm_80"),
];

/// Rounding the output to bf16 leaves 1.7e-3 of the norm; three times that is a mistake.
const HALF: f64 = 5e-3;

fn int(v: usize) -> Arg {
    Arg::S32(v as i32)
}

fn up(a: usize, b: usize) -> u32 {
    a.div_ceil(b) as u32
}

fn outcome(label: impl Into<String>, bytes: Vec<u8>, error: f64, bound: f64) -> Outcome {
    Outcome { label: label.into(), bytes, error, bound }
}

fn words_that_differ(label: &str, bytes: Vec<u8>, want: &[u8]) -> Outcome {
    let n = bytes.iter().zip(want).filter(|(a, b)| a != b).count() + bytes.len().abs_diff(want.len());
    outcome(format!("{label}, bytes that differ"), bytes, n as f64, 0.0)
}

fn input(m: &mut Memory, v: &[bf16]) -> u64 {
    m.alloc_from(&raw(v)).unwrap()
}

fn room(m: &mut Memory, bytes: usize) -> u64 {
    m.alloc(bytes as u64).unwrap()
}

fn back(m: &Memory, p: u64, bytes: usize) -> Vec<u8> {
    m.bytes(p, bytes as u64).unwrap()
}

fn gemm(b: &mut Bench, small: bool, wgmma: bool) -> Given {
    let mut out = Vec::new();
    let mut r = Draw::new(1);
    for &(m, n, k) in if small { &[(72, 136, 456)][..] } else { &[(200, 136, 328), (64, 128, 64)][..] } {
        let (a, w, bias) = (r.halves(m * k), r.halves(n * k), r.halves(n));
        let mut mem = Memory::new();
        let (pa, pw, pb, pc) =
            (input(&mut mem, &a), input(&mut mem, &w), input(&mut mem, &bias), room(&mut mem, m * n * 2));
        let sizes = [int(m), int(n), int(k)];
        if wgmma {
            let (m64, n64, k64) = (m as u64, n as u64, k as u64);
            let mut args = vec![
                map(&mut mem, pa, &[k64, m64], &[64, 128], 128),
                map(&mut mem, pw, &[k64, n64], &[64, 128], 128),
                map(&mut mem, pc, &[n64, m64], &[64, 64], 128),
                Arg::Ptr(pb),
            ];
            args.extend(sizes);
            b.run("gemm_wgmma.sm_90a", "gemm_wgmma", &args, &mut mem, [if small { 1 } else { 2 }, 1, 1], 384)?;
        } else {
            let mut args = [pa, pw, pb, pc].map(Arg::Ptr).to_vec();
            args.extend(sizes);
            b.run("gemm_mma.sm_80", "gemm_mma", &args, &mut mem, [up(n, 128), up(m, 128), 1], 256)?;
        }
        let mut want = product(&wide(&a), &wide(&w), m, n, k);
        want.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % n].to_f64());
        let c = back(&mem, pc, m * n * 2);
        out.push(outcome(format!("{m}x{n}x{k}"), c.clone(), relative(&halves(&c), &want), HALF));
    }
    Ok(out)
}

fn gemm_wgmma(b: &mut Bench, small: bool) -> Given {
    gemm(b, small, true)
}

fn gemm_mma(b: &mut Bench, small: bool) -> Given {
    gemm(b, small, false)
}

/// q, k, v `[batch, token, head, dim]`, and in f64 softmax numbers `[batch, head, q, k]`, output, log-sum-exp.
struct Attention {
    x: [Vec<bf16>; 3],
    p: Vec<f64>,
    o: Vec<f64>,
    lse: Vec<f64>,
}

/// Mutants ask for the same references again and again.
fn once<T: Clone + Send + 'static>(key: String, f: impl FnOnce() -> T) -> T {
    type Known = Mutex<HashMap<String, Box<dyn Any + Send>>>;
    static KNOWN: LazyLock<Known> = LazyLock::new(Mutex::default);
    if let Some(v) = KNOWN.lock().unwrap().get(&key) {
        return v.downcast_ref::<T>().unwrap().clone();
    }
    let v = f();
    KNOWN.lock().unwrap().insert(key, Box::new(v.clone()));
    v
}

fn attention(r: &mut Draw, bt: usize, t: usize, h: usize, d: usize, shift: f64) -> Arc<Attention> {
    let (a, after) = once(format!("attention {r:?} {bt} {t} {h} {d} {shift}"), || {
        let mut r = *r;
        (Arc::new(softmax(&mut r, bt, t, h, d, shift)), r)
    });
    *r = after;
    a
}

fn softmax(r: &mut Draw, bt: usize, t: usize, h: usize, d: usize, shift: f64) -> Attention {
    let x =
        [shift, -shift, 0.0].map(|s| (0..bt * t * h * d).map(|_| bf16::from_f64(r.normal() + s)).collect::<Vec<_>>());
    let [q, k, v] = [0, 1, 2].map(|n| wide(&x[n]));
    let (mut p, mut o, mut lse) = (vec![0.0; bt * h * t * t], vec![0.0; q.len()], vec![0.0; bt * h * t]);
    let at = |b: usize, i: usize, g: usize| ((b * t + i) * h + g) * d;
    for b in 0..bt {
        for g in 0..h {
            for i in 0..t {
                let row = (b * h + g) * t + i;
                let dot =
                    |j: usize| (0..d).map(|e| q[at(b, i, g) + e] * k[at(b, j, g) + e]).sum::<f64>() / (d as f64).sqrt();
                let s: Vec<f64> = (0..t).map(dot).collect();
                let most = s.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = s.iter().map(|s| (s - most).exp()).sum();
                lse[row] = most + sum.ln();
                for j in 0..t {
                    let w = (s[j] - lse[row]).exp();
                    p[row * t + j] = w;
                    (0..d).for_each(|e| o[at(b, i, g) + e] += w * v[at(b, j, g) + e]);
                }
            }
        }
    }
    Attention { x, p, o, lse }
}

/// The first `n` tokens of every sample.
fn tokens(v: &[f64], t: usize, n: usize) -> Vec<f64> {
    let per = v.len() / t;
    // one sample: tokens are outermost
    v[..per * n].to_vec()
}

fn attn_fwd(b: &mut Bench, small: bool) -> Given {
    let mut out = Vec::new();
    let mut r = Draw::new(1);
    for &(t, h, bt) in if small { &[(400, 1, 1)][..] } else { &[(333, 2, 1), (128, 1, 2)][..] } {
        let a = attention(&mut r, bt, t, h, 64, 0.0);
        let mut m = Memory::new();
        let mut p: Vec<u64> = a.x.iter().map(|x| input(&mut m, x)).collect();
        p.push(room(&mut m, bt * t * h * 128));
        let l = room(&mut m, bt * t * h * 4);
        let dims = [64, h as u64, t as u64, bt as u64];
        let mut args: Vec<Arg> =
            p.iter().zip([192, 128, 128, 64]).map(|(&p, rows)| map(&mut m, p, &dims, &[64, 1, rows, 1], 128)).collect();
        args.extend([Arg::Ptr(l), int(t), int(h), Arg::F32(0.125 * std::f32::consts::LOG2_E)]);
        b.run(
            "attn_fwd.sm_90a",
            "attn_fwd",
            &args,
            &mut m,
            [if small { 1 } else { up(t, 192) }, h as u32, bt as u32],
            512,
        )?;
        let n = if small { 192 } else { t };
        let len = bt * n * h * 128;
        let o = back(&m, p[3], len);
        let want = if bt == 1 { tokens(&a.o, t, n) } else { a.o.clone() };
        out.push(outcome(format!("{bt}x{t}x{h}"), o.clone(), relative(&halves(&o), &want), HALF));
        let lse = back(&m, l, bt * h * t * 4);
        let keep = |v: Vec<f64>| v.chunks(t).flat_map(|c| c[..n].to_vec()).collect::<Vec<f64>>();
        let (got, want) = (keep(floats(&lse)), keep(a.lse.clone()));
        out.push(outcome("log-sum-exp", lse, largest(&got, &want), 1e-4));
    }
    Ok(out)
}

/// Gradients in f64: dq, dk, dv, and delta.
fn gradients(a: &Attention, g: &[f64], bt: usize, t: usize, h: usize, d: usize) -> [Vec<f64>; 3] {
    let [q, k, v] = [0, 1, 2].map(|n| wide(&a.x[n]));
    let at = |b: usize, i: usize, n: usize| ((b * t + i) * h + n) * d;
    let mut out = [0, 1, 2].map(|_| vec![0.0; q.len()]);
    let scale = 1.0 / (d as f64).sqrt();
    for b in 0..bt {
        for n in 0..h {
            for i in 0..t {
                let iq = at(b, i, n);
                let delta: f64 = (0..d).map(|e| g[iq + e] * a.o[iq + e]).sum();
                for j in 0..t {
                    let jk = at(b, j, n);
                    let p = a.p[((b * h + n) * t + i) * t + j];
                    let dp: f64 = (0..d).map(|e| g[iq + e] * v[jk + e]).sum();
                    let ds = p * (dp - delta) * scale;
                    for e in 0..d {
                        out[0][iq + e] += ds * k[jk + e];
                        out[1][jk + e] += ds * q[iq + e];
                        out[2][jk + e] += p * g[iq + e];
                    }
                }
            }
        }
    }
    out
}

fn attn_bwd(b: &mut Bench, small: bool) -> Given {
    // small: scores near -128, so that 2^-lse overflows and a key that does not exist must be masked
    let (n, h, bt) = if small { ([70, 260], 1, 1) } else { ([205, 100], 2, 2) };
    let t = n[0] + n[1];
    let mut r = Draw::new(1);
    let a = attention(&mut r, bt, t, h, 64, if small { 4.0 } else { 0.0 });
    let go = r.halves(bt * t * h * 64);
    let want = once(format!("gradients {r:?} {bt} {t} {h}"), || gradients(&a, &wide(&go), bt, t, h, 64));
    let o: Vec<bf16> = a.o.iter().map(|&v| bf16::from_f64(v)).collect();
    let mut m = Memory::new();
    let per = h * 64;
    let part = |v: &[bf16], which: usize| -> Vec<bf16> {
        let (from, to) = if which == 0 { (0, n[0]) } else { (n[0], t) };
        (0..bt).flat_map(|s| v[(s * t + from) * per..(s * t + to) * per].to_vec()).collect()
    };
    let both = |m: &mut Memory, v: &[bf16]| [0, 1].map(|w| input(m, &part(v, w)));
    let pads: usize = n.iter().map(|&k| k.div_ceil(128) * 128).sum();
    let (dp, l2) = (room(&mut m, bt * h * pads * 4), room(&mut m, bt * h * pads * 4));
    let ls = m.alloc_from(&a.lse.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    let (oo, gg) = (both(&mut m, &o), both(&mut m, &go));
    let sizes = [int(n[0]), int(n[1]), int(h)];
    let mut args: Vec<Arg> = [oo[0], oo[1], gg[0], gg[1], ls, dp, l2].map(Arg::Ptr).to_vec();
    args.extend(sizes.clone());
    b.run("attn_bwd.sm_90a", "attn_bwd_delta", &args, &mut m, [pads as u32 / 32, h as u32, bt as u32], 256)?;
    let ins = [both(&mut m, &a.x[0]), both(&mut m, &a.x[1]), both(&mut m, &a.x[2]), gg];
    let outs: Vec<[u64; 2]> = (0..3).map(|_| n.map(|k| room(&mut m, bt * k * h * 128))).collect();
    let all = up(n[0], 128) + up(n[1], 128);
    let mut out = Vec::new();
    for (kernel, rows, targets, grid) in [
        ("attn_bwd_dkv64", 64, [1, 2], if small { 1 } else { all }),
        ("attn_bwd_dkv128", 128, [1, 2], 1),
        ("attn_bwd_dq", 128, [0, 0], if small { 1 } else { all }),
    ] {
        let lone = kernel == "attn_bwd_dkv128";
        let mut p = Vec::new();
        for (bases, rows) in [
            (ins[0], rows),
            (ins[1], 128),
            (ins[2], 128),
            (ins[3], rows),
            (outs[targets[0]], 64),
            (outs[targets[1]], 64),
        ] {
            for (base, k) in bases.into_iter().zip(n) {
                p.push(words(&mut m, base, &[64, h as u64, k as u64, bt as u64], &[64, 1, rows, 1], 128));
            }
        }
        let mut args = vec![maps(&p), Arg::Ptr(dp), Arg::Ptr(l2)];
        args.extend(sizes.clone());
        args.push(Arg::F32(0.125));
        b.run("attn_bwd.sm_90a", kernel, &args, &mut m, [grid, h as u32, if lone { 1 } else { bt as u32 }], 384)?;
        for target in if targets[0] == 0 { vec![0] } else { vec![1, 2] } {
            let samples = if lone { 1 } else { bt };
            let keep = if small || grid == 1 { n[0].min(128) } else { t };
            let parts = [0, 1].map(|w| back(&m, outs[target][w], bt * n[w] * h * 128));
            let (mut got, mut reference) = (Vec::new(), Vec::new());
            for s in 0..samples {
                for i in 0..keep {
                    let (w, i_in) = if i < n[0] { (0, i) } else { (1, i - n[0]) };
                    let from = (s * n[w] + i_in) * per * 2;
                    got.extend_from_slice(&parts[w][from..from + per * 2]);
                    reference.extend_from_slice(&want[target][(s * t + i) * per..(s * t + i + 1) * per]);
                }
            }
            let label = format!("{kernel} {bt}x{}+{}x{h} {}", n[0], n[1], ["dQ", "dK", "dV"][target]);
            let error = relative(&halves(&got), &reference);
            // delta feels the rounding of O, more so where scores are large
            out.push(outcome(label, got, error, if small { 3e-2 } else { 6e-3 }));
        }
    }
    Ok(out)
}

fn layouts(b: &mut Bench, small: bool) -> Given {
    let mut out = Vec::new();
    let mut r = Draw::new(1);
    for &w in if small { &[128u32][..] } else { &[128, 64, 32][..] } {
        for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
            let (a, bb) = (r.halves(64 * 64), r.halves(64 * 64));
            let mut m = Memory::new();
            let (pa, pb, pc) = (input(&mut m, &a), input(&mut m, &bb), room(&mut m, 64 * 64 * 4));
            let kernel = format!("layout_{}{}", if ta { 'm' } else { 'k' }, if tb { 'n' } else { 'k' });
            let args = [
                map(&mut m, pa, &[64, 64], &[w / 2, 64], w),
                map(&mut m, pb, &[64, 64], &[w / 2, 64], w),
                Arg::Ptr(pc),
                Arg::S32(w as i32),
            ];
            b.run("layouts.sm_90a", &kernel, &args, &mut m, [1, 1, 1], 128)?;
            let (mut fa, mut fb) = (wide(&a), wide(&bb));
            if ta {
                fa = transposed(&fa, 64, 64);
            }
            if tb {
                fb = transposed(&fb, 64, 64);
            }
            let c = back(&m, pc, 64 * 64 * 4);
            // 64 sums of f32
            out.push(outcome(
                format!("{kernel} {w}"),
                c.clone(),
                relative(&floats(&c), &product(&fa, &fb, 64, 64, 64)),
                1e-6,
            ));
        }
    }
    Ok(out)
}

/// Rows of three adapters mixed: theta, old, none. A row alone, and a row of none without the extra tile, have the same
/// bits.
fn linear(b: &mut Bench, small: bool) -> Given {
    // small: fewer tiles of K than stages, so that the ring runs ahead into the next tile
    let (m, n, k) = if small { (72, 264, 72) } else { (200, 136, 328) };
    let per = 50;
    let mut r = Draw::new(1);
    let (x, w, bias, gate) = (r.halves(m * k), r.halves(n * k), r.halves(n), r.halves(m.div_ceil(per) * n));
    let (res, lb) = (r.halves(m * n), r.halves(n * 64));
    let who: Vec<usize> = (0..m).map(|_| r.next() as usize % 3).collect();
    let mut t = r.halves(m * 64);
    for (i, v) in t.iter_mut().enumerate() {
        if i % 64 / 32 != who[i / 64] {
            *v = bf16::ZERO;
        }
    }
    struct Given<'a> {
        x: &'a [bf16],
        t: &'a [bf16],
        w: &'a [bf16],
        b: &'a [bf16],
        gate: &'a [bf16],
        res: &'a [bf16],
    }
    let go = |b: &mut Bench, kernel: &str, g: Given, lora: usize, per: usize, blocks: u32| -> Result<Vec<u8>, String> {
        let rows = g.x.len() / k;
        let mut mem = Memory::new();
        let c = room(&mut mem, rows * n * 2);
        let (r64, n64, k64) = (rows as u64, n as u64, k as u64);
        let dx = kernel == "linear_dx";
        let (wd, bd, tile) = if dx { ([n64, k64], [n64, 64], [64, 64]) } else { ([k64, n64], [64, n64], [64, 128]) };
        let ptr = [g.x, g.t, g.w, g.b, g.res].map(|v| input(&mut mem, v));
        let p = [
            words(&mut mem, ptr[0], &[k64, r64], &[64, 128], 128),
            words(&mut mem, ptr[1], &[64, r64], &[64, 128], 128),
            words(&mut mem, ptr[2], &wd, &tile, 128),
            words(&mut mem, ptr[3], &bd, &tile, 128),
            words(&mut mem, c, &[n64, r64], &[64, 64], 128),
            words(&mut mem, ptr[4], &[n64, r64], &[64, 64], 128),
        ];
        let (pb, pg) = (input(&mut mem, &bias), input(&mut mem, g.gate));
        let args = [maps(&p), Arg::Ptr(pb), Arg::Ptr(pg), int(rows), int(n), int(k), int(lora), int(per)];
        b.run("linear.sm_90a", kernel, &args, &mut mem, [blocks, 1, 1], 384)?;
        Ok(back(&mem, c, rows * n * 2))
    };
    let blocks = if small { 1 } else { 2 };
    let mut y = product(&wide(&x), &wide(&w), m, n, k);
    let extra = product(&wide(&t), &wide(&lb), m, n, 64);
    y.iter_mut().zip(&extra).enumerate().for_each(|(i, (y, e))| *y += e + bias[i % n].to_f64());
    let gated: Vec<f64> =
        y.iter().enumerate().map(|(i, y)| res[i].to_f64() + gate[i / n / per * n + i % n].to_f64() * y).collect();
    let mut out = Vec::new();
    for (kernel, want) in [("linear_bias", &y), ("linear_gate", &gated)] {
        let all = || Given { x: &x, t: &t, w: &w, b: &lb, gate: &gate, res: &res };
        let o = go(b, kernel, all(), 1, per, blocks)?;
        out.push(outcome(format!("{kernel} {m}x{n}x{k}"), o.clone(), relative(&halves(&o), want), HALF));
        if small {
            continue;
        }
        for row in
            [who.iter().position(|&w| w == 0), who.iter().position(|&w| w == 1), Some(m - 1)].into_iter().flatten()
        {
            let of = |v: &'_ [bf16], per: usize, at: usize| v[at * per..(at + 1) * per].to_vec();
            let (x, t, g, s) = (of(&x, k, row), of(&t, 64, row), of(&gate, n, row / per), of(&res, n, row));
            let a = go(b, kernel, Given { x: &x, t: &t, w: &w, b: &lb, gate: &g, res: &s }, 1, 1, 1)?;
            out.push(words_that_differ(&format!("row {row} alone"), a, &o[row * n * 2..(row + 1) * n * 2]));
        }
        let a = go(b, kernel, all(), 0, per, 1)?;
        let rows = |v: &[u8]| {
            (0..m).filter(|&i| who[i] == 2).flat_map(|i| v[i * n * 2..(i + 1) * n * 2].to_vec()).collect::<Vec<u8>>()
        };
        out.push(words_that_differ("reference rows without the tile", rows(&a), &rows(&o)));
    }
    // dy [m, k], W [k, n], u [m, 64], A [64, n]
    let (dy, a, w2) = (r.halves(m * k), r.halves(64 * n), r.halves(k * n));
    let o = go(b, "linear_dx", Given { x: &dy, t: &t, w: &w2, b: &a, gate: &gate, res: &res }, 1, per, blocks)?;
    let mut want = product(&wide(&dy), &transposed(&wide(&w2), k, n), m, n, k);
    let extra = product(&wide(&t), &transposed(&wide(&a), 64, n), m, n, 64);
    want.iter_mut().zip(&extra).for_each(|(y, e)| *y += e);
    out.push(outcome(format!("linear_dx {m}x{n}x{k}"), o.clone(), relative(&halves(&o), &want), HALF));
    Ok(out)
}

fn attn_dims(b: &mut Bench, small: bool) -> Given {
    let mut out = Vec::new();
    let mut r = Draw::new(1);
    for (d, t, bq, block) in [(80, 300, 192, 512), (128, 300, 128, 384)] {
        let a = attention(&mut r, 1, t, 1, d, 0.0);
        let mut m = Memory::new();
        let mut p: Vec<u64> = a.x.iter().map(|x| input(&mut m, x)).collect();
        p.push(room(&mut m, t * d * 2));
        let l = room(&mut m, t * 4);
        let dims = [d as u64, 1, t as u64, 1];
        let mut all = Vec::new();
        for (&p, rows) in p.iter().zip([bq as u32, 128, 128, 64]) {
            all.push(words(&mut m, p, &dims, &[64, 1, rows, 1], 128));
            let (columns, swizzle) = if d == 80 { (16, 32) } else { (64, 128) };
            all.push(words(&mut m, p, &dims, &[columns, 1, rows, 1], swizzle));
        }
        let scale = (1.0 / (d as f64).sqrt() * std::f64::consts::LOG2_E) as f32;
        let args = [maps(&all), Arg::Ptr(l), int(t), int(1), Arg::F32(scale)];
        b.run("attn_dims.sm_90a", &format!("attn_fwd_d{d}"), &args, &mut m, [up(t, bq), 1, 1], block)?;
        let n = if small { bq } else { t };
        let o = back(&m, p[3], n * d * 2);
        out.push(outcome(format!("d{d} {t}"), o.clone(), relative(&halves(&o), &tokens(&a.o, t, n)), HALF));
        let lse = back(&m, l, n * 4);
        out.push(outcome("log-sum-exp", lse.clone(), largest(&floats(&lse), &a.lse[..n]), 1e-4));
    }
    Ok(out)
}

fn attn_mma(b: &mut Bench, small: bool) -> Given {
    let mut r = Draw::new(1);
    let (t, h) = if small { (140, 1) } else { (205, 2) };
    let a = attention(&mut r, 1, t, h, 64, 0.0);
    let mut m = Memory::new();
    let mut p: Vec<u64> = a.x.iter().map(|x| input(&mut m, x)).collect();
    p.push(room(&mut m, t * h * 128));
    let l = room(&mut m, t * h * 4);
    let n = if small { 128 } else { t };
    let mut args: Vec<Arg> = p.iter().map(|&p| Arg::Ptr(p)).collect();
    args.extend([Arg::Ptr(l), int(t), int(h), Arg::F32(0.125 * std::f32::consts::LOG2_E)]);
    b.run("attn_mma.sm_80", "attn_mma", &args, &mut m, [up(n, 128), h as u32, 1], 128)?;
    let o = back(&m, p[3], n * h * 128);
    let lse = back(&m, l, t * h * 4);
    let keep = |v: Vec<f64>| v.chunks(t).flat_map(|c| c[..n].to_vec()).collect::<Vec<f64>>();
    let error = largest(&keep(floats(&lse)), &keep(a.lse.clone()));
    Ok(vec![
        outcome(format!("1x{t}x{h}"), o.clone(), relative(&halves(&o), &tokens(&a.o, t, n)), HALF),
        outcome("log-sum-exp", lse, error, 1e-4),
    ])
}

fn conv(b: &mut Bench, small: bool) -> Given {
    let (h, w, i, o, n) = if small { (6, 10, 24, 72, 1) } else { (10, 19, 72, 136, 2) };
    let mut r = Draw::new(1);
    let (x, wt, bias) = (r.halves(n * h * w * i), r.halves(o * 9 * i), r.halves(o));
    let mut m = Memory::new();
    let (px, pw, pb, py) =
        (input(&mut m, &x), input(&mut m, &wt), input(&mut m, &bias), room(&mut m, n * h * w * o * 2));
    let (h64, w64, i64_, o64, n64) = (h as u64, w as u64, i as u64, o as u64, n as u64);
    let p = [
        words(&mut m, px, &[i64_, w64, h64, n64], &[64, 16, 8, 1], 128),
        words(&mut m, pw, &[i64_, 9, o64, 1], &[64, 1, 128, 1], 128),
        words(&mut m, py, &[o64, w64, h64, n64], &[64, 16, 4, 1], 128),
    ];
    let args = [maps(&p), Arg::Ptr(pb), int(h), int(w), int(i), int(o)];
    b.run("conv.sm_90a", "conv3x3", &args, &mut m, [up(w, 16) * up(h, 8), up(o, 128), n as u32], 384)?;
    let (fx, fw) = (wide(&x), wide(&wt));
    let mut want = Vec::new();
    for s in 0..n {
        for (y, z) in (0..h).flat_map(|y| (0..w).map(move |z| (y, z))) {
            for c in 0..o {
                let mut sum = bias[c].to_f64();
                for tap in 0..9 {
                    let (yy, zz) = (y + tap / 3, z + tap % 3);
                    if (1..=h).contains(&yy) && (1..=w).contains(&zz) {
                        let at = ((s * h + yy - 1) * w + zz - 1) * i;
                        sum += (0..i).map(|e| fx[at + e] * fw[(c * 9 + tap) * i + e]).sum::<f64>();
                    }
                }
                want.push(sum);
            }
        }
    }
    let y = back(&m, py, n * h * w * o * 2);
    Ok(vec![outcome(format!("{n}x{h}x{w} {i}->{o}"), y.clone(), relative(&halves(&y), &want), HALF)])
}

fn keys(r: &mut Draw, n: usize) -> Vec<[u32; 4]> {
    (0..n).map(|_| std::array::from_fn(|_| r.next() as u32)).collect()
}

fn words_of<T: Copy, const N: usize>(v: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    v.iter().flat_map(|&v| f(v)).collect()
}

fn noise(b: &mut Bench, small: bool) -> Given {
    let n = 1usize << if small { 9 } else { 17 };
    let mut r = Draw::new(1);
    let keys = keys(&mut r, 2);
    let mut m = Memory::new();
    let o = room(&mut m, 2 * n * 4);
    let k = m.alloc_from(&words_of(&keys.concat(), u32::to_le_bytes)).unwrap();
    b.run("step.sm_80", "noise_fill", &[Arg::Ptr(o), Arg::Ptr(k), int(n / 4)], &mut m, [up(n / 4, 256), 2, 1], 256)?;
    let want: Vec<f32> = keys.iter().flat_map(|&k| normals(k, n)).collect();
    Ok(vec![words_that_differ("normals", back(&m, o, 2 * n * 4), &words_of(&want, f32::to_le_bytes))])
}

fn step(b: &mut Bench, small: bool) -> Given {
    let (batch, n) = if small { (1, 512) } else { (3, 2560) };
    let mut r = Draw::new(1);
    let x: Vec<f32> = (0..batch * n).map(|_| r.normal() as f32).collect();
    let [c, u, m1] = [0; 3].map(|_| r.halves(batch * n));
    let keys = keys(&mut r, batch);
    let coefficients = [[4.5f32, 1.01, -0.0625, 0.0, 0.3], [1.0, 1.0, -0.1, 0.0, 0.0], [7.0, 0.9, -0.2, 0.05, 0.7]];
    let mut out = Vec::new();
    for &history in if small { &[false][..] } else { &[false, true][..] } {
        let mut m = Memory::new();
        let px = m.alloc_from(&words_of(&x, f32::to_le_bytes)).unwrap();
        let (pc, pu, pm) = (input(&mut m, &c), input(&mut m, &u), input(&mut m, &m1));
        let pk = m.alloc_from(&words_of(&keys.concat(), u32::to_le_bytes)).unwrap();
        let pf = m.alloc_from(&words_of(&coefficients[..batch].concat(), f32::to_le_bytes)).unwrap();
        let chunks = n.div_ceil(1024);
        let (o, p) = (room(&mut m, batch * n * 4), room(&mut m, batch * chunks * 8));
        let mut args = [px, o, pc, pu, if history { pm } else { 0 }, pk, pf, p].map(Arg::Ptr).to_vec();
        args.push(int(n));
        b.run("step.sm_80", "step", &args, &mut m, [chunks as u32, batch as u32, 1], 256)?;
        let (mut want, mut sums) = (Vec::new(), Vec::new());
        for s in 0..batch {
            let [g, a, bb, b1, sigma] = coefficients[s];
            let e = normals(keys[s], n);
            let mut squares = vec![0f64; chunks * 1024];
            for i in 0..n {
                let at = s * n + i;
                let (cv, uv) = (c[at].to_f32(), u[at].to_f32());
                let v = uv + g * (cv - uv);
                let mut mean = a * x[at] + bb * v;
                if history {
                    mean += b1 * m1[at].to_f32();
                }
                let next = if sigma != 0.0 { mean + sigma * e[i] } else { mean };
                want.push(next);
                squares[i] = f64::from(next - mean).powi(2);
            }
            for chunk in squares.chunks(1024) {
                let warp = |w: &[f64]| {
                    let mut t: Vec<f64> = w.chunks(4).map(|q| ((q[0] + q[1]) + q[2]) + q[3]).collect();
                    for half in [16, 8, 4, 2, 1] {
                        (0..half).for_each(|i| t[i] += t[i + half]);
                    }
                    t[0]
                };
                sums.push(chunk.chunks(128).map(warp).reduce(|a, b| a + b).unwrap());
            }
        }
        out.push(words_that_differ("next", back(&m, o, batch * n * 4), &words_of(&want, f32::to_le_bytes)));
        out.push(words_that_differ("sums", back(&m, p, batch * chunks * 8), &words_of(&sums, f64::to_le_bytes)));
    }
    Ok(out)
}
