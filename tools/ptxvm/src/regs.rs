//! The registers of one warp, a row of 32 lanes each, and operations over whole rows.
//!
//! A register is bits; the instruction says what they mean. Registers up to 32 bits lie in rows of `u32`, those of 64
//! in rows of `u64`, predicates in the bits of one word. Immediates and special registers are rows too, filled when a
//! warp starts: no instruction asks what kind of operand it has.

use half::{bf16, f16};

/// Lanes of a warp.
pub const LANES: usize = 32;

/// Which file a register is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum File {
    /// Up to 32 bits.
    Word,
    /// 64 bits.
    Wide,
    /// A predicate.
    Flag,
}

/// A register of a decoded kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reg {
    /// Its file.
    pub file: File,
    /// Its row.
    pub row: u32,
}

/// All registers of a warp, and which lanes of each were ever written.
#[derive(Debug, Clone, Default)]
pub struct Regs {
    /// Rows up to 32 bits.
    pub word: Vec<[u32; LANES]>,
    /// Rows of 64 bits.
    pub wide: Vec<[u64; LANES]>,
    /// Predicates, a bit for a lane.
    pub flag: Vec<u32>,
    /// Lanes written, by file and row.
    pub known: [Vec<u32>; 3],
}

impl Regs {
    /// Lanes of a register that were written.
    #[inline(always)]
    pub fn known(&self, r: Reg) -> u32 {
        self.known[r.file as usize][r.row as usize]
    }

    /// Marks lanes as written.
    #[inline(always)]
    pub fn learn(&mut self, r: Reg, lanes: u32) {
        self.known[r.file as usize][r.row as usize] |= lanes;
    }

    /// The value of a lane, extended by zeros.
    #[inline(always)]
    pub fn lane(&self, r: Reg, lane: usize) -> u64 {
        match r.file {
            File::Word => u64::from(self.word[r.row as usize][lane]),
            File::Wide => self.wide[r.row as usize][lane],
            File::Flag => u64::from(self.flag[r.row as usize] >> lane & 1),
        }
    }

    /// Sets a lane to the low bits of a value.
    #[inline(always)]
    pub fn set_lane(&mut self, r: Reg, lane: usize, v: u64) {
        match r.file {
            File::Word => self.word[r.row as usize][lane] = v as u32,
            File::Wide => self.wide[r.row as usize][lane] = v,
            File::Flag => {
                let f = &mut self.flag[r.row as usize];
                *f = *f & !(1 << lane) | (v as u32 & 1) << lane;
            }
        }
    }

    /// A row as 64-bit values.
    #[inline(always)]
    pub fn row64(&self, r: Reg) -> [u64; LANES] {
        match r.file {
            File::Wide => self.wide[r.row as usize],
            File::Word => self.word[r.row as usize].map(u64::from),
            File::Flag => std::array::from_fn(|l| u64::from(self.flag[r.row as usize] >> l & 1)),
        }
    }
}

/// A value that a lane of a register can hold.
pub trait Lane: Copy + Send + Sync + 'static {
    /// A row.
    fn get(r: &Regs, row: u32) -> [Self; LANES];
    /// Writes the lanes of `mask`.
    fn put(r: &mut Regs, row: u32, v: &[Self; LANES], mask: u32);
}

macro_rules! lane {
    ($($t:ty, $file:ident, $word:ty, $from:expr, $to:expr;)*) => {$(
        impl Lane for $t {
            #[inline(always)]
            fn get(r: &Regs, row: u32) -> [Self; LANES] {
                let from: fn($word) -> $t = $from;
                let s = &r.$file[row as usize];
                let mut v = [from(0); LANES];
                for l in 0..LANES {
                    v[l] = from(s[l]);
                }
                v
            }
            #[inline(always)]
            fn put(r: &mut Regs, row: u32, v: &[Self; LANES], mask: u32) {
                let to: fn($t) -> $word = $to;
                let d = &mut r.$file[row as usize];
                if mask == u32::MAX {
                    for l in 0..LANES {
                        d[l] = to(v[l]);
                    }
                } else {
                    for l in 0..LANES {
                        d[l] = if mask >> l & 1 == 1 { to(v[l]) } else { d[l] };
                    }
                }
            }
        }
    )*};
}

lane! {
    u32, word, u32, |v| v, |v| v;
    i32, word, u32, |v| v as i32, |v| v as u32;
    f32, word, u32, f32::from_bits, f32::to_bits;
    u16, word, u32, |v| v as u16, u32::from;
    i16, word, u32, |v| v as i16, |v| u32::from(v as u16);
    u8, word, u32, |v| v as u8, u32::from;
    i8, word, u32, |v| v as i8, |v| i32::from(v) as u32;
    f16, word, u32, |v| f16::from_bits(v as u16), |v| u32::from(v.to_bits());
    bf16, word, u32, |v| bf16::from_bits(v as u16), |v| u32::from(v.to_bits());
    u64, wide, u64, |v| v, |v| v;
    i64, wide, u64, |v| v as i64, |v| v as u64;
    f64, wide, u64, f64::from_bits, f64::to_bits;
}

impl Lane for bool {
    #[inline(always)]
    fn get(r: &Regs, row: u32) -> [bool; LANES] {
        let m = r.flag[row as usize];
        std::array::from_fn(|l| m >> l & 1 == 1)
    }
    #[inline(always)]
    fn put(r: &mut Regs, row: u32, v: &[bool; LANES], mask: u32) {
        let mut m = 0u32;
        for (l, &b) in v.iter().enumerate() {
            m |= u32::from(b) << l;
        }
        let d = &mut r.flag[row as usize];
        *d = *d & !mask | m & mask;
    }
}

/// What an instruction does to the lanes of a mask.
pub type Apply = Box<dyn Fn(&mut Regs, u32) + Send + Sync>;

/// A row, lane by lane: a loop that stays one, which arrays' own functions do not.
#[inline(always)]
fn each<T: Copy>(f: impl Fn(usize) -> T) -> [T; LANES] {
    let mut v = [f(0); LANES];
    for (l, v) in v.iter_mut().enumerate().skip(1) {
        *v = f(l);
    }
    v
}

/// One source.
pub fn map1<D: Lane, A: Lane>(d: Reg, a: Reg, f: impl Fn(A) -> D + Send + Sync + 'static) -> Apply {
    Box::new(move |r, mask| {
        let a = A::get(r, a.row);
        D::put(r, d.row, &each(|l| f(a[l])), mask);
    })
}

/// Two sources.
pub fn map2<D: Lane, A: Lane, B: Lane>(d: Reg, a: Reg, b: Reg, f: impl Fn(A, B) -> D + Send + Sync + 'static) -> Apply {
    Box::new(move |r, mask| {
        let (a, b) = (A::get(r, a.row), B::get(r, b.row));
        D::put(r, d.row, &each(|l| f(a[l], b[l])), mask);
    })
}

/// Three sources.
pub fn map3<D: Lane, A: Lane, B: Lane, C: Lane>(
    d: Reg,
    [a, b, c]: [Reg; 3],
    f: impl Fn(A, B, C) -> D + Send + Sync + 'static,
) -> Apply {
    Box::new(move |r, mask| {
        let (a, b, c) = (A::get(r, a.row), B::get(r, b.row), C::get(r, c.row));
        D::put(r, d.row, &each(|l| f(a[l], b[l], c[l])), mask);
    })
}

/// Four sources.
pub fn map4<D: Lane, A: Lane, B: Lane, C: Lane, E: Lane>(
    d: Reg,
    [a, b, c, e]: [Reg; 4],
    f: impl Fn(A, B, C, E) -> D + Send + Sync + 'static,
) -> Apply {
    Box::new(move |r, mask| {
        let (a, b, c, e) = (A::get(r, a.row), B::get(r, b.row), C::get(r, c.row), E::get(r, e.row));
        D::put(r, d.row, &each(|l| f(a[l], b[l], c[l], e[l])), mask);
    })
}
