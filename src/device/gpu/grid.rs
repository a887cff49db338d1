//! How kernels are laid over their work, and what their entries are called.

use super::{DType, DevicePtr};

/// How a kernel is laid over its work.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Blocks.
    pub blocks: [u32; 3],
    /// Threads of each.
    pub threads: u32,
}

impl Grid {
    /// One dimension of blocks of 256 threads, for so many threads.
    pub fn flat(threads: usize) -> Self {
        Self { blocks: [u32::try_from(threads.div_ceil(256)).expect("a grid that fits"), 1, 1], threads: 256 }
    }

    /// As [`Grid::flat`], with a thread for every 16 bytes of `elements` of `dtype`.
    pub fn packs(elements: usize, dtype: DType) -> Self {
        Self::flat(elements.div_ceil(16 / dtype.bytes(1)))
    }

    /// Threads for `rows` rows of `width` elements of `dtype` in each of `samples`, as kernels/common/rows.cuh has them.
    /// `places` are the addresses of all that is read and written, and the bytes from one sample's to the next.
    pub fn rows(samples: usize, rows: usize, width: usize, dtype: DType, places: &[u64]) -> Rows {
        const WARP: usize = 32;
        // Of a block whose threads keep their shares, and of one that reads them again.
        const KEEPING: usize = 128;
        const READING: usize = 256;
        let bytes = dtype.bytes(width) as u64;
        let packed = places.iter().fold(bytes, |all, place| all | place).is_multiple_of(16);
        let packs = width.div_ceil(16 / dtype.bytes(1));
        let (turns, lanes, threads) = match (packs, packed) {
            (0..=WARP, _) => ("1", packs.next_power_of_two(), READING),
            (_, true) if packs <= 3 * WARP => ("3", WARP, KEEPING),
            (_, true) if packs <= 6 * WARP => ("6", WARP, KEEPING),
            (_, true) if packs <= 6 * KEEPING => {
                let warps = packs.div_ceil(6 * WARP);
                ("6", warps * WARP, warps * WARP)
            }
            _ => ("long", READING, READING),
        };
        let grid = Self::of([rows.div_ceil(threads / lanes), samples, 1], threads as u32);
        Rows { grid, lanes: lanes as u32, suffix: format!("{turns}_{}", suffix(dtype)) }
    }

    /// Blocks of `threads` in up to three dimensions.
    pub fn of(blocks: [usize; 3], threads: u32) -> Self {
        Self { blocks: blocks.map(|b| u32::try_from(b).expect("a grid that fits")), threads }
    }
}

/// How rows are shared out.
pub struct Rows {
    /// Blocks and threads.
    pub grid: Grid,
    /// Threads of a row.
    pub lanes: u32,
    /// Of the entry: turns of a thread, and storage type.
    pub suffix: String,
}

/// A size as kernels take it.
pub fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or_else(|_| panic!("{n}: on a GPU sizes are less than 2^32"))
}

/// Numbers of single precision that a thread moves at once, and what the entries for that are called: 16 bytes where all rows
/// of `width` numbers from all `places` on consist of them.
pub fn vectors<const N: usize>(width: usize, places: [DevicePtr; N]) -> (usize, &'static str) {
    let whole = width.is_multiple_of(4) && places.iter().all(|place| place.is_multiple_of(16));
    if whole { (4, "packed") } else { (1, "plain") }
}

/// The suffix of the entries for a storage type.
pub fn suffix(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::Bf16 => "bf16",
        DType::U8 => "u8",
        DType::Blocks(blocks) => blocks.name(),
    }
}

/// What a storage type is called in kernels that are told it as they run: `Type` of kernels/common/operand.cuh.
pub fn type_code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Bf16 => 2,
        DType::U8 | DType::Blocks(_) => panic!("{dtype:?} is not computed in"),
    }
}
