// What attention by products of warp groups is told, and how its work is cut: see src/ops/attention. (cuda/hopper.rs lays out
// Operands as they are here.)
#pragma once
#include "common/hopper.cuh"
#include "common/math.cuh"

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;
constexpr int KEYS = 128;  // of a stage

// Parts of a sequence, of tensors [b, n, heads * d], for kernels for heads of D: boxes of 64 queries and of KEYS keys.
template <int D> struct Operands {
  // One for each kind of panel: 64 columns swizzled by 128 bytes, and 16 by 32 or 32 by 64.
  static constexpr int MAPS = D % 64 ? 2 : 1;
  TensorMap q[4][MAPS], k[4][MAPS], v[4][MAPS], out[4][MAPS];
  float* wide[4];  // results, if they are f32
  u32 tokens[4];
  u32 first[4];  // tokens before a part
  u32 parts, n, heads, d;
  u32 rows;           // 64 queries each, of all parts
  u32 tiles_of_head;  // of as many rows as a block has groups
  u32 tiles;
  u32 is_wide;
  float scale;
};

// A tile of queries: which head and sample, and its first row of 64.
struct Place {
  u32 head, sample, first;
  template <int D> __device__ __forceinline__ Place(const Operands<D>& s, u32 index, u32 groups) {
    const u32 of = index / s.tiles_of_head;
    first = (index - of * s.tiles_of_head) * groups;
    sample = of / s.heads;
    head = of - sample * s.heads;
  }
};

// A row of 64 queries: its part, and its first token there.
struct Queries {
  u32 part = 0, row;
  template <int D> __device__ __forceinline__ Queries(const Operands<D>& s, u32 index) {
    for (; part + 1 < s.parts; ++part) {
      const u32 count = (s.tokens[part] + 63) / 64;
      if (index < count) break;
      index -= count;
    }
    row = index * 64;
  }
};

// Keys of a stage, part by part: those before token `seen` of their part.
struct Keys {
  u32 part = 0, row = 0;
  template <int D> __device__ __forceinline__ bool exist(const Operands<D>& s, u32 seen) const { return part < s.parts && row < seen; }
  template <int D> __device__ __forceinline__ void next(const Operands<D>& s) {
    row += KEYS;
    if (row >= s.tokens[part]) ++part, row = 0;
  }
};

// A stage of a ring, and which turn of its barriers it is.
template <int STAGES> struct Stage {
  u32 index = 0, parity = 0;
  __device__ __forceinline__ void next() {
    if (++index == STAGES) index = 0, parity ^= 1;
  }
};

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

// Where 16 bytes of row r, number j in it, are in a tile of rows of W bytes, swizzled by as much.
template <int W> __device__ __forceinline__ u32 swizzled_by(int r, int j) {
  return r * W + ((j ^ (r / (128 / W) & (W / 16 - 1))) << 4);
}
// The lower half of a descriptor, which a step in shared memory is added to, as 16 bytes: a wider sum would carry. `panel` is the
// way to the next W bytes of rows whose neighbours are columns of a product.
__device__ __forceinline__ u32 place_of(u32 at, u32 panel = 16) { return at >> 4 | panel >> 4 << 16; }
// The descriptor of rows of W bytes, swizzled by as much.
template <int W> __device__ __forceinline__ u64 rows_at(u32 place) { return (descriptor<W>(0, 0, 8 * W) >> 32 << 32) | place; }
