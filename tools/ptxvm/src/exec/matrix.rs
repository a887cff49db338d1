//! `mma` and `wgmma` (PTX ISA 9.7.14 and 9.7.15). Products are exact and summed in f64, with the accumulator, and rounded
//! once: the ISA asks for single precision at least, in an order it leaves open.

use half::f16;

use super::copies::swizzle;
use super::{Block, Product, Wait, lanes_of};
use crate::finding::{Fault, Kind, Step, fault};
use crate::program::{Elem, Exec, Mma, Wgmma};
use crate::regs::{LANES, Reg, Regs};

/// The value of a half.
#[inline(always)]
fn value(elem: Elem, h: u16) -> f32 {
    match elem {
        Elem::F16 => f16::from_bits(h).to_f32(),
        _ => f32::from_bits(u32::from(h) << 16),
    }
}

/// The ten bits of a fraction that tf32 has.
fn tf32(w: u32) -> f32 {
    f32::from_bits(w & 0xFFFF_E000)
}

/// `mma.m16n8kK`: fragments as in 9.7.14.5.
pub(super) fn mma(r: &mut Regs, m: &Mma) {
    let [d, a, b, c] = &m.regs;
    if let Elem::Int(_) | Elem::Fp8(_) = m.elem {
        return mma_bytes(r, m);
    }
    let k = usize::from(m.k);
    let (mut fa, mut fb) = ([[0f64; 16]; 16], [[0f64; 8]; 16]);
    match m.elem {
        Elem::Tf32 => {
            for l in 0..LANES {
                let (g, q) = (l / 4, l % 4);
                for (i, reg) in a.iter().enumerate() {
                    fa[g + 8 * (i & 1)][4 * (i >> 1) + q] = tf32(r.word[reg.row as usize][l]).into();
                }
                for (i, reg) in b.iter().enumerate() {
                    fb[4 * i + q][g] = tf32(r.word[reg.row as usize][l]).into();
                }
            }
        }
        Elem::F16 => halves(r, (&a[..], &b[..]), (&mut fa, &mut fb), |h| f16::from_bits(h).to_f32()),
        _ => halves(r, (&a[..], &b[..]), (&mut fa, &mut fb), |h| f32::from_bits(u32::from(h) << 16)),
    }
    let mut p = [[0f64; 8]; 16];
    for (row, fa) in p.iter_mut().zip(&fa) {
        for (x, fb) in fa[..k].iter().zip(&fb) {
            for (s, y) in row.iter_mut().zip(fb) {
                *s = x.mul_add(*y, *s);
            }
        }
    }
    for l in 0..LANES {
        let (g, q) = (l / 4, 2 * (l % 4));
        for i in 0..2 {
            let row = &p[g + 8 * i];
            if m.half {
                let w = r.word[c[i].row as usize][l];
                let sum = |v: f64, h: u16| {
                    u32::from(
                        crate::numeric::to_f16(
                            (v + f64::from(f16::from_bits(h))) as f32,
                            crate::numeric::Round::Nearest,
                        )
                        .to_bits(),
                    )
                };
                r.word[d[i].row as usize][l] = sum(row[q], w as u16) | sum(row[q + 1], (w >> 16) as u16) << 16;
            } else {
                for j in 0..2 {
                    let old = f32::from_bits(r.word[c[2 * i + j].row as usize][l]);
                    r.word[d[2 * i + j].row as usize][l] = ((row[q + j] + f64::from(old)) as f32).to_bits();
                }
            }
        }
    }
}

/// Fragments of halves: four neighbouring lanes have eight neighbouring elements of a row of A, or of a column of B.
#[inline(always)]
fn halves(
    r: &Regs,
    (a, b): (&[Reg], &[Reg]),
    (fa, fb): (&mut [[f64; 16]; 16], &mut [[f64; 8]; 16]),
    value: impl Fn(u16) -> f32,
) {
    for (i, reg) in a.iter().enumerate() {
        for (g, words) in r.word[reg.row as usize].as_chunks::<4>().0.iter().enumerate() {
            let (row, _) = fa[g + 8 * (i & 1)][8 * (i >> 1)..].as_chunks_mut::<2>();
            for (to, w) in row.iter_mut().zip(words) {
                *to = [value(*w as u16).into(), value((*w >> 16) as u16).into()];
            }
        }
    }
    for (i, reg) in b.iter().enumerate() {
        for (g, words) in r.word[reg.row as usize].as_chunks::<4>().0.iter().enumerate() {
            for (q, w) in words.iter().enumerate() {
                fb[8 * i + 2 * q][g] = value(*w as u16).into();
                fb[8 * i + 2 * q + 1][g] = value((*w >> 16) as u16).into();
            }
        }
    }
}

/// `mma` of bytes: four of a row of A or of a column of B in each register.
fn mma_bytes(r: &mut Regs, m: &Mma) {
    let [d, a, b, c] = &m.regs;
    let k = usize::from(m.k);
    let value = |byte: u32, side: usize| match m.elem {
        Elem::Int(signed) if signed[side] => f64::from(byte as u8 as i8),
        Elem::Fp8(e5m2) => f64::from(crate::numeric::from_fp8(byte as u8, e5m2[side])),
        _ => f64::from(byte as u8),
    };
    let (mut fa, mut fb) = ([[0f64; 32]; 16], [[0f64; 32]; 8]);
    for l in 0..LANES {
        let (g, q) = (l / 4, l % 4);
        for e in 0..4 {
            for (i, reg) in a.iter().enumerate() {
                fa[g + 8 * (i & 1)][16 * (i >> 1) + 4 * q + e] = value(r.word[reg.row as usize][l] >> (8 * e), 0);
            }
            for (i, reg) in b.iter().enumerate() {
                fb[g][16 * i + 4 * q + e] = value(r.word[reg.row as usize][l] >> (8 * e), 1);
            }
        }
    }
    for l in 0..LANES {
        let (g, q) = (l / 4, 2 * (l % 4));
        for (i, (d, c)) in d.iter().zip(c).enumerate() {
            let old = r.word[c.row as usize][l];
            // exact for integers: 32 products of 16 bits
            let sum = |row: usize, col: usize| (0..k).map(|x| fa[row][x] * fb[col][x]).sum::<f64>();
            r.word[d.row as usize][l] = if m.half {
                let half = |j: usize| {
                    let old = f64::from(f16::from_bits((old >> (16 * j)) as u16));
                    let v = (sum(g + 8 * i, q + j) + old) as f32;
                    u32::from(crate::numeric::to_f16(v, crate::numeric::Round::Nearest).to_bits()) << (16 * j)
                };
                half(0) | half(1)
            } else {
                let s = sum(g + 8 * (i >> 1), q + (i & 1));
                match m.elem {
                    Elem::Int(_) if m.saturates => {
                        (s as i64 + i64::from(old as i32)).clamp(i32::MIN.into(), i32::MAX.into()) as u32
                    }
                    Elem::Int(_) => (s as i64 as u32).wrapping_add(old),
                    _ => ((s + f64::from(f32::from_bits(old))) as f32).to_bits(),
                }
            };
        }
    }
}

/// A matrix in shared memory as its descriptor says (9.7.15.5.1.2).
#[derive(Clone, Copy)]
struct Matrix {
    base: u32,
    lbo: u32,
    sbo: u32,
    mode: u32,
    rows: u32,
    /// M- or N-major.
    trans: bool,
}

impl Matrix {
    fn new(desc: u64, rows: u32, trans: bool) -> Step<Matrix> {
        let field = |at: u32| ((desc >> at & 0x3FFF) << 4) as u32;
        if desc >> 49 & 7 != 0 {
            return fault(
                Kind::Descriptor,
                format!("a matrix descriptor {desc:#x} with a base offset, which is not supported"),
            );
        }
        let mode = [0, 128, 64, 32][(desc >> 62) as usize];
        Ok(Matrix { base: field(0), lbo: field(16), sbo: field(32), mode, rows, trans })
    }

    /// Where eight neighbouring elements lie: K-major of row `i`, k from `8j`; M- or N-major of rows from `8i`, k = `j`.
    #[inline(always)]
    fn chunk(&self, i: u32, j: u32) -> u32 {
        let w = self.mode.max(16) / 16;
        let (lbo, sbo) = (self.lbo, self.sbo);
        let a = match (self.trans, self.mode) {
            (false, 0) => (i % 8) * 16 + (i / 8) * sbo + j * lbo,
            (false, _) => (i % 8) * 16 * w + (i / 8) * sbo + j * 16,
            (true, 0) => i * sbo + (j % 8) * 16 + (j / 8) * lbo,
            (true, _) => (i % w) * 16 + (i / w) * lbo + (j % 8) * 16 * w + (j / 8) * sbo,
        };
        swizzle(self.base.wrapping_add(a), self.mode)
    }

    /// Chunks: row or group of rows, half of k or k.
    fn chunks(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let (n, m) = if self.trans { (self.rows / 8, 16) } else { (self.rows, 2) };
        (0..n).flat_map(move |i| (0..m).map(move |j| (i, j)))
    }
}

impl Block<'_> {
    /// All words of a matrix, which must lie in shared memory.
    fn matrix_words(&self, m: &Matrix, out: &mut Vec<usize>) -> Step {
        for (i, j) in m.chunks() {
            let a = m.chunk(i, j);
            if let Err((kind, message)) = self.shared.check(a.into(), 16, 16) {
                return Err(Box::new(Fault {
                    kind,
                    lane: None,
                    address: Some(a.into()),
                    message: format!("{message} (operand of a wgmma)"),
                }));
            }
            if !self.shared.knows(a as usize, 16) {
                return Err(Box::new(Fault {
                    kind: Kind::Uninitialised,
                    lane: None,
                    address: Some(a.into()),
                    message: "an operand of a wgmma in shared memory that nobody wrote".into(),
                }));
            }
            out.extend(a as usize / 4..a as usize / 4 + 4);
        }
        Ok(())
    }

    /// `[k][row]`.
    fn matrix(&self, m: &Matrix, elem: Elem) -> Vec<f64> {
        let n = m.rows as usize;
        let mut out = vec![0.0; 16 * n];
        for (i, j) in m.chunks() {
            let a = m.chunk(i, j) as usize;
            for e in 0..8 {
                let v = f64::from(value(elem, self.shared.half(a + 2 * e)));
                let (row, k) =
                    if m.trans { (8 * i as usize + e, j as usize) } else { (i as usize, 8 * j as usize + e) };
                out[k * n + row] = v;
            }
        }
        out
    }

    /// Warp `w` has come to an instruction of its group; whether the group went on.
    pub(super) fn group(&mut self, w: usize) -> Step<bool> {
        let Some(Wait::Group(pc)) = self.warps[w].wait else { return Ok(true) };
        self.place = (w, pc, self.warps[w].parts.first().map_or(1, |p| p.mask));
        let first = w / 4 * 4;
        let ws = first..first + 4;
        if ws.end > self.warps.len() {
            return fault(
                Kind::Divergence,
                format!("warps {first} to {} are no whole warp group", self.warps.len() - 1),
            );
        }
        for v in ws.clone() {
            match &self.warps[v].wait {
                Some(Wait::Group(other)) if *other == pc => {}
                Some(Wait::Group(other)) => {
                    let other = self.where_is(*other);
                    return fault(Kind::Divergence, format!("warp {v} of the same warp group is at {other}"));
                }
                _ if self.warps[v].done() => {
                    return fault(Kind::Divergence, format!("warp {v} of the same warp group has exited"));
                }
                _ => return Ok(false),
            }
        }
        let inst = &self.code()[pc as usize];
        match &inst.exec {
            Exec::WgFence => ws.clone().for_each(|v| self.warps[v].fences += 1),
            Exec::Wgmma(m) => self.issue(first, pc, m)?,
            Exec::WgCommit => self.products[first / 4].close(),
            Exec::WgWait(keep) => {
                while let Some(group) = self.products[first / 4].next(*keep as usize) {
                    for p in group {
                        if !p.done {
                            self.product(first, &p)?;
                        }
                        self.end_uses(first, &p);
                    }
                }
            }
            Exec::SetMaxReg { inc, n } => {
                let pool = ((65_536 / (32 * self.warps.len() as u32)) & !7).min(248) * self.allotted.len() as u32;
                let others: u32 = self.allotted.iter().sum::<u32>() - self.allotted[first / 4];
                if *inc && others + n > pool {
                    return Ok(false);
                }
                if *inc != (*n >= self.allotted[first / 4]) && *n != self.allotted[first / 4] {
                    return fault(
                        Kind::Descriptor,
                        format!("setmaxnreg from {} to {n} in the wrong direction", self.allotted[first / 4]),
                    );
                }
                self.allotted[first / 4] = *n;
            }
            _ => {}
        }
        self.events += 1;
        for v in ws {
            let warp = &mut self.warps[v];
            warp.wait = None;
            if let Some(p) = warp.parts.first_mut() {
                p.pc += 1;
            }
            for &r in &inst.writes {
                warp.regs.learn(r, u32::MAX);
            }
        }
        Ok(true)
    }

    fn end_uses(&mut self, first: usize, p: &Product) {
        for v in first..first + 4 {
            p.rows.iter().for_each(|&r| self.warps[v].busy[r as usize] -= 1);
        }
        if let Some(s) = &mut self.shadow {
            s.let_go(first..first + 4, p.words.iter().copied());
        }
    }

    /// Descriptors and scale-d are read now; registers and shared memory at any time up to the wait.
    fn issue(&mut self, first: usize, pc: u32, m: &Wgmma) -> Step {
        for v in first..first + 4 {
            let warp = &self.warps[v];
            for r in m.d.iter().chain(m.a.iter().flatten()) {
                if warp.touched[r.row as usize] == warp.fences {
                    return fault(Kind::InFlight, format!("no wgmma.fence since warp {v} touched its registers"));
                }
            }
        }
        let uniform = |r: Reg, what: &str| -> Step<u64> {
            let x = self.warps[first].regs.lane(r, 0);
            for v in first..first + 4 {
                if let Some(l) = lanes_of(u32::MAX).find(|&l| self.warps[v].regs.lane(r, l) != x) {
                    return Err(Box::new(Fault {
                        kind: Kind::Descriptor,
                        lane: Some(l),
                        address: None,
                        message: format!("{what} differs between the lanes of a warp group"),
                    }));
                }
            }
            Ok(x)
        };
        let b = uniform(m.b_desc, "a descriptor")?;
        let a = match m.a_desc {
            Some(r) => uniform(r, "a descriptor")?,
            None => 0,
        };
        let add = uniform(m.scale_d, "scale-d")? != 0;
        let mut words = Vec::new();
        self.matrix_words(&Matrix::new(b, m.n.into(), m.trans[1])?, &mut words)?;
        if m.a_desc.is_some() {
            self.matrix_words(&Matrix::new(a, 64, m.trans[0])?, &mut words)?;
        }
        if let Some(s) = &mut self.shadow {
            s.hold(first..first + 4, words.iter().copied(), "a wgmma")?;
        }
        let rows: Vec<u32> = m.d.iter().chain(m.a.iter().flatten()).map(|r| r.row).collect();
        for v in first..first + 4 {
            rows.iter().for_each(|&r| self.warps[v].busy[r as usize] += 1);
        }
        let now = self.eager();
        if now {
            // in order: those that were put off come first
            let mut before = std::mem::take(&mut self.products[first / 4]);
            for p in before.closed.iter_mut().flatten().chain(&mut before.open).filter(|p| !p.done) {
                self.product(first, p)?;
                p.done = true;
            }
            self.products[first / 4] = before;
        }
        let p = Product { pc, a, b, add, done: now, words, rows };
        if now {
            self.product(first, &p)?;
        }
        self.products[first / 4].open.push(p);
        Ok(())
    }

    /// D = A·B (+ D).
    fn product(&mut self, first: usize, p: &Product) -> Step {
        let Exec::Wgmma(m) = &self.code()[p.pc as usize].exec else { return Ok(()) };
        let n = usize::from(m.n);
        let b = self.matrix(&Matrix::new(p.b, m.n.into(), m.trans[1])?, m.elem);
        let mut a = match m.a {
            None => self.matrix(&Matrix::new(p.a, 64, m.trans[0])?, m.elem),
            Some(regs) => {
                let mut a = vec![0f64; 16 * 64];
                for w in 0..4 {
                    for (i, reg) in regs.iter().enumerate() {
                        let row = &self.warps[first + w].regs.word[reg.row as usize];
                        for (l, v) in row.iter().enumerate() {
                            let (r, k) = (16 * w + l / 4 + 8 * (i & 1), 8 * (i >> 1) + 2 * (l % 4));
                            a[k * 64 + r] = value(m.elem, *v as u16).into();
                            a[(k + 1) * 64 + r] = value(m.elem, (*v >> 16) as u16).into();
                        }
                    }
                }
                a
            }
        };
        let sign = f64::from(m.signs[0] * m.signs[1]);
        if sign < 0.0 {
            a.iter_mut().for_each(|v| *v = -*v);
        }
        let mut sums = vec![0f64; n];
        for row in 0..64 {
            sums.fill(0.0);
            for k in 0..16 {
                let x = a[k * 64 + row];
                for (s, y) in sums.iter_mut().zip(&b[k * n..(k + 1) * n]) {
                    *s = x.mul_add(*y, *s);
                }
            }
            // row 16w + g + 8h, column 8j + 2q + e is register 4j + 2h + e of lane 4g + q
            let (w, h, g) = (row / 16, row / 8 % 2, row % 8);
            let regs = &mut self.warps[first + w].regs;
            for (col, s) in sums.iter().enumerate() {
                let i = 4 * (col / 8) + 2 * h + col % 2;
                let d = &mut regs.word[m.d[i].row as usize][4 * g + col % 8 / 2];
                let old = if p.add { f64::from(f32::from_bits(*d)) } else { 0.0 };
                *d = ((s + old) as f32).to_bits();
            }
        }
        Ok(())
    }
}
