//! Copies of boxes of tensors.

use super::{Way, one_thread, swizzle};
use crate::decode::PARAM;
use crate::exec::row::{address, placed};
use crate::exec::{Block, Warp};
use crate::finding::{Fault, Kind, Step, fault, fault_at};
use crate::program::{Address, Rmw};
use crate::regs::Reg;
use crate::shared::raw;
use crate::tensor_map::TensorMap;
use crate::types::Type;

fn no_type(m: &TensorMap) -> Box<Fault> {
    Box::new(Fault {
        kind: Kind::Descriptor,
        lane: None,
        address: None,
        message: format!("a reduction by a map that does not say what its elements of {} bytes are", m.elem),
    })
}

impl Block<'_> {
    /// The tensor map that a lane's address names.
    pub(in crate::exec) fn tensor_map(&self, warp: &Warp, lane: usize, a: Address) -> Step<TensorMap> {
        let a = address(warp, lane, a);
        let words = if a >= PARAM {
            let v = self.param(a, 16, lane)?;
            v.map(u64::from)
        } else {
            placed(self.launch.memory.load(a, 16, false, &self.watch), lane, a)?.map(u64::from)
        };
        if !a.is_multiple_of(64) {
            return fault_at(Kind::Misaligned, lane, a, "a tensor map must be aligned to 64 bytes");
        }
        match self.launch.memory.map([words[0] | words[1] << 32, words[2] | words[3] << 32]) {
            Some(m) => Ok(m.clone()),
            None => fault_at(Kind::Descriptor, lane, a, "what lies there is no tensor map"),
        }
    }

    /// The map, the coordinates, and the place in shared memory.
    fn tensor_parts(
        &self,
        warp: &Warp,
        lane: usize,
        shared: Address,
        map: Address,
        at: &[Reg],
    ) -> Step<(TensorMap, Vec<i32>, u32)> {
        let m = self.tensor_map(warp, lane, map)?;
        if m.dims.len() != at.len() {
            return fault(
                Kind::Descriptor,
                format!("{} coordinates for a map of {} dimensions", at.len(), m.dims.len()),
            );
        }
        let c = at.iter().map(|&r| warp.regs.lane(r, lane) as i32).collect();
        let a = address(warp, lane, shared);
        let a = placed(self.shared.check(a, m.box_bytes() as usize, 128), lane, a)?;
        Ok((m, c, a as u32))
    }

    pub(in crate::exec) fn tensor_load(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        to: Address,
        map: Address,
        at: &[Reg],
        bar: Address,
    ) -> Step {
        let lane = one_thread(ex)?;
        let (m, c, to) = self.tensor_parts(warp, lane, to, map, at)?;
        let bytes = m.box_bytes();
        self.issue_load(warp, lane, Way::TensorLoad(m, c), to, bytes, bar)
    }

    pub(in crate::exec) fn tensor_store(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        from: Address,
        map: Address,
        at: &[Reg],
        reduce: Option<Rmw>,
    ) -> Step {
        let lane = one_thread(ex)?;
        let (m, c, from) = self.tensor_parts(warp, lane, from, map, at)?;
        let reduce = match (reduce, m.kind) {
            (None, _) => None,
            (Some(op @ (Rmw::And | Rmw::Or | Rmw::Xor)), _) if m.elem >= 4 => Some((op, Type::B32)),
            (Some(op), Some(kind)) => Some((op, kind.of(m.elem).ok_or_else(|| no_type(&m))?)),
            (Some(_), None) => return Err(no_type(&m)),
        };
        let bytes = m.box_bytes();
        self.issue_store(warp, Way::TensorStore(m, c, reduce), from, bytes)
    }

    /// Copies a whole row of a box; false where something is wrong, which is then looked for piece by piece.
    fn row(&mut self, m: &TensorMap, spot: u32, global: u64, len: u32, store: bool) -> bool {
        // 256 elements of eight bytes
        let mut row = [0u8; 2048];
        let row = &mut row[..len as usize];
        let memory = self.launch.memory;
        if !store && memory.load_span(global, row, &self.watch).is_err() {
            return false;
        }
        for (n, chunk) in row.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let at = swizzle(spot + 16 * n as u32, m.swizzle) as usize;
            let there = &mut self.shared.bytes[at..at + 16];
            if store { chunk.copy_from_slice(there) } else { there.copy_from_slice(chunk) }
        }
        !store || memory.store_span(global, row, &self.watch).is_ok()
    }

    /// Copies a box, dense in shared memory but for the swizzle. Elements outside of the tensor are zeros when loaded,
    /// and left alone when stored.
    pub(super) fn tensor_box(
        &mut self,
        m: &TensorMap,
        c: &[i32],
        shared: u32,
        (store, reduce): (bool, Option<(Rmw, Type)>),
        lane: usize,
    ) -> Step<u32> {
        let rank = m.dims.len();
        let counts: Vec<u32> = (0..rank).map(|d| m.loaded(d)).collect();
        let (elem, row_bytes) = (m.elem, counts[0] * m.elem);
        let rows: u32 = counts[1..].iter().product();
        let mut place = vec![0u32; rank];
        let mut moved = 0u64;
        for r in 0..rows {
            let mut rest = r;
            for d in 1..rank {
                place[d] = rest % counts[d];
                rest /= counts[d];
            }
            let mut from = m.base;
            let mut inside = true;
            for d in 1..rank {
                let p = i64::from(c[d]) + i64::from(place[d]) * i64::from(m.steps[d]);
                inside &= p >= 0 && (p as u64) < m.dims[d];
                from = from.wrapping_add((p as u64).wrapping_mul(m.strides[d - 1]));
            }
            let spot = shared + r * row_bytes;
            if !store && !inside {
                let chunks = (0..row_bytes).step_by(16).map(|o| swizzle(spot + o, m.swizzle) as usize);
                chunks.for_each(|at| self.shared.bytes[at..at + 16].fill(0));
                continue;
            }
            let first = from.wrapping_add(i64::from(c[0]).wrapping_mul(elem.into()) as u64);
            let whole = inside && m.steps[0] == 1 && c[0] >= 0 && c[0] as u64 + u64::from(counts[0]) <= m.dims[0];
            if whole && first.is_multiple_of(16) && reduce.is_none() && self.row(m, spot, first, row_bytes, store) {
                moved += u64::from(row_bytes);
                continue;
            }
            for chunk in (0..row_bytes).step_by(16) {
                let at = swizzle(shared + r * row_bytes + chunk, m.swizzle) as usize;
                let first = i64::from(c[0]) + i64::from(chunk / elem) * i64::from(m.steps[0]);
                let n = 16 / elem;
                let whole = inside && m.steps[0] == 1 && first >= 0 && first as u64 + u64::from(n) <= m.dims[0];
                let a = from.wrapping_add((first as u64).wrapping_mul(elem.into()));
                if whole && a % 16 == 0 {
                    if store {
                        self.put(at, a, 16, reduce, lane)?;
                    } else {
                        let v = placed(self.launch.memory.load(a, 16, false, &self.watch), lane, a)?;
                        self.shared.bytes[at..at + 16].copy_from_slice(&raw(v));
                    }
                    moved += 16;
                    continue;
                }
                for e in 0..n {
                    let p = first + i64::from(e) * i64::from(m.steps[0]);
                    let (s, len) = (at + (e * elem) as usize, elem as usize);
                    let ok = inside && p >= 0 && (p as u64) < m.dims[0];
                    let a = from.wrapping_add((p as u64).wrapping_mul(elem.into()));
                    if !ok {
                        if !store {
                            self.shared.bytes[s..s + len].fill(0);
                        }
                    } else if store {
                        self.put(s, a, len, reduce, lane)?;
                        moved += len as u64;
                    } else {
                        let v = placed(self.launch.memory.load(a, len, false, &self.watch), lane, a)?;
                        self.shared.bytes[s..s + len].copy_from_slice(&raw(v)[..len]);
                        moved += len as u64;
                    }
                }
            }
        }
        let bytes = rows * row_bytes;
        if store {
            self.stats.global_written += moved;
            self.stats.shared_read += u64::from(bytes);
        } else {
            self.shared.learn(shared as usize, bytes as usize);
            self.stats.global_read += moved;
            self.stats.shared_written += u64::from(bytes);
        }
        Ok(bytes)
    }
}
