//! `ldmatrix` and `stmatrix` (PTX ISA 9.7.14.5.15 and 9.7.14.5.16).

use super::row::{Row, address_list, in_shared, placed};
use super::{Block, Warp};
use crate::finding::Step;
use crate::program::Address;
use crate::regs::{LANES, Reg};
use crate::types::Space;

impl Block<'_> {
    /// Eight rows of sixteen bytes for each matrix; lanes 8j to 8j+7 say where (9.7.14.5.15).
    pub(super) fn ldmatrix(&mut self, warp: &mut Warp, space: Space, trans: bool, dst: &[Reg], from: Address) -> Step {
        let mut at = [(0, 0); LANES];
        address_list(warp, u32::MAX, from, &mut at);
        let n = dst.len() * 8;
        let mut rows = [[0u16; 8]; LANES];
        let mut row = Row::new(warp, u32::MAX >> (32 - n), from, 16);
        let mut w = [[0; LANES]; 4];
        let whole = row.aligned(16)
            && row.resolve(space) == Some(Space::Shared)
            && self.load_row(warp.id, &row, Space::Shared, 16, (false, false), &mut w);
        if whole {
            for (l, r) in rows.iter_mut().enumerate() {
                *r = std::array::from_fn(|k| (w[k / 2][l] >> (16 * (k % 2))) as u16);
            }
        }
        for &mut (l, ref mut a) in at[..n].iter_mut().filter(|_| !whole) {
            *a = in_shared(space, *a, l)?;
            let a = *a;
            self.ordinary(a, 16, l)?;
            self.shadow_read(warp.id, a, 16, l)?;
            let v = placed(self.shared.load(a, 16), l, a)?;
            rows[l] = std::array::from_fn(|k| (v[k / 2] >> (16 * (k % 2))) as u16);
        }
        for (j, &d) in dst.iter().enumerate() {
            let m = &rows[8 * j..8 * j + 8];
            let row = &mut warp.regs.word[d.row as usize];
            for (l, v) in row.iter_mut().enumerate() {
                let (g, q) = (l / 4, 2 * (l % 4));
                let (lo, hi) = if trans { (m[q][g], m[q + 1][g]) } else { (m[g][q], m[g][q + 1]) };
                *v = u32::from(lo) | u32::from(hi) << 16;
            }
        }
        if whole {
            self.count_row(Space::Shared, &row, 16, false);
        } else {
            self.count(Space::Shared, &at[..n], 16, false);
        }
        Ok(())
    }

    pub(super) fn stmatrix(&mut self, warp: &mut Warp, space: Space, trans: bool, src: &[Reg], to: Address) -> Step {
        let mut at = [(0, 0); LANES];
        address_list(warp, u32::MAX, to, &mut at);
        let n = src.len() * 8;
        for &mut (r, ref mut a) in &mut at[..n] {
            *a = in_shared(space, *a, r)?;
            let a = *a;
            let (j, r8) = (r / 8, r % 8);
            let half = |k: usize| {
                let (row, col) = if trans { (k, r8) } else { (r8, k) };
                (warp.regs.lane(src[j], 4 * row + col / 2) >> (16 * (col % 2))) as u16
            };
            let v = std::array::from_fn(|w| u32::from(half(2 * w)) | u32::from(half(2 * w + 1)) << 16);
            self.ordinary(a, 16, r)?;
            placed(self.shared.store(a, 16, v), r, a)?;
            if let Some(s) = &mut self.shadow {
                s.write(warp.id, a as usize, 16)?;
            }
        }
        self.count(Space::Shared, &at[..n], 16, true);
        Ok(())
    }
}
