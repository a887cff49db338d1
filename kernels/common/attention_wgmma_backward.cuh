// What the gradients of attention by products of warp groups share: tiles of tokens in shared memory, and products of them.
#pragma once
#include "common/attention_mma.cuh"
#include "common/hopper.cuh"

// Of boxes of 64 tokens: for each part in turn, and each of these in turn, Head<D>::MAPS.
struct Maps {
  TensorMap of[24];
};
enum Operand { Q, K, V, DOUT, RESULT, DV, OPERANDS };  // the result is dq or dk

// A tile of ROWS tokens lies as a panel of 64 columns, in 128-byte swizzle, and behind it the rest of them, in the swizzle of
// its own width.
template <int D> struct Head {
  static constexpr int REST = D - 64, SWIZZLE = 2 * REST;
  static constexpr int MAPS = REST % 64 ? 2 : 1;
  template <int ROWS> static constexpr u32 BYTES = ROWS * D * 2;
  static __device__ __forceinline__ const TensorMap* map(const Maps& maps, u32 part, Operand of) {
    return &maps.of[(part * OPERANDS + of) * MAPS];
  }
};
constexpr int GROUP = 128;                // threads of a warp group
constexpr u32 PANEL = 64 * 128;           // bytes of 64 rows of the first panel

// A head of a sample.
struct Place {
  u32 head, sample;
};

// Begins to copy tokens row.. of a head.
template <int D, int ROWS>
__device__ __forceinline__ void begin_rows(u32 tile, const TensorMap* m, u32 barrier, Place of, u32 row) {
#pragma unroll
  for (int i = 0; i < ROWS / 64; ++i) {
    tma_load(tile + i * PANEL, m, barrier, 0, of.head, row + 64 * i, of.sample);
    if constexpr (D > 64)
      tma_load(tile + ROWS * 128 + i * 64 * Head<D>::SWIZZLE, m + Head<D>::MAPS - 1, barrier, 64, of.head, row + 64 * i, of.sample);
  }
}
// Begins to write 64 tokens row.. of a head.
template <int D> __device__ __forceinline__ void store_rows(const TensorMap* m, u32 tile, Place of, u32 row) {
  tma_store(m, tile, 0, of.head, row, of.sample);
  if constexpr (D > 64) tma_store(m + Head<D>::MAPS - 1, tile + PANEL, 64, of.head, row, of.sample);
}

// A descriptor `bytes` further on. There is no carry into its upper half, which the compiler cannot know.
__device__ __forceinline__ u64 further(u64 descriptor, u32 bytes) {
  return (descriptor & 0xffffffff00000000ull) | (u32)((u32)descriptor + (bytes >> 4));
}

// 64 rows of a group, the left operand of products with tiles of other rows: read from shared memory every time, or HELD in
// registers, which spares it what it has no bandwidth for if there are only 64 other rows at a time.
template <typename T, int D, bool HELD> struct Left {
  u32 tile;

  __device__ __forceinline__ Left(u32 tile) : tile(tile) {}
  // acc = rows times N rows of b.
  template <int N> __device__ __forceinline__ void begin_scores(float (&acc)[N / 2], u32 b) const {
    const u64 left = descriptor<128>(tile, 16, 1024), right = descriptor<128>(b, 16, 1024);
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T, N>::ss(acc, further(left, 32 * k), further(right, 32 * k), k);
    if constexpr (D > 64) {
      constexpr int SWIZZLE = Head<D>::SWIZZLE;
      const u64 left = descriptor<SWIZZLE>(tile + PANEL, 16, 8 * SWIZZLE), right = descriptor<SWIZZLE>(b + N * 128, 16, 8 * SWIZZLE);
#pragma unroll
      for (int k = 0; k < Head<D>::REST / 16; ++k) Wgmma<T, N>::ss(acc, further(left, 32 * k), further(right, 32 * k), 1);
    }
  }
};
template <typename T> struct Left<T, 64, true> {
  u32 rows[4][4];

  __device__ __forceinline__ Left(u32 tile) {
    const u32 row = threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 16;
#pragma unroll
    for (int k = 0; k < 4; ++k) ldmatrix4(rows[k], tile + swizzled(row, 2 * k + threadIdx.x % 32 / 16));
  }
  template <int N> __device__ __forceinline__ void begin_scores(float (&acc)[N / 2], u32 b) const {
    const u64 right = descriptor<128>(b, 16, 1024);
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T, N>::template rs<0>(acc, rows[k], further(right, 32 * k), k);
  }
};

// Sums [64, D] of a warp group.
template <int D> struct Sums {
  static constexpr int WIDE = D == 128 ? 128 : 64, NARROW = D == 128 ? 0 : D - 64;
  float wide[WIDE / 2] = {}, narrow[NARROW ? NARROW / 2 : 1] = {};

  // += p [64, N] times N rows of b.
  template <typename T, int N> __device__ __forceinline__ void begin_adding(const u32 (&p)[N / 16][4], u32 b) {
    const u64 right = descriptor<128>(b, N * 128, 1024);
#pragma unroll
    for (int k = 0; k < N / 16; ++k) Wgmma<T, WIDE>::template rs<1>(wide, p[k], further(right, k * 16 * 128));
    if constexpr (NARROW != 0) {
      constexpr int SWIZZLE = Head<D>::SWIZZLE;
      const u64 right = descriptor<SWIZZLE>(b + N * 128, 16, 8 * SWIZZLE);
#pragma unroll
      for (int k = 0; k < N / 16; ++k) Wgmma<T, NARROW>::template rs<1>(narrow, p[k], further(right, k * 16 * SWIZZLE));
    }
  }

  __device__ __forceinline__ void begin() {
    settle(wide);
    if (NARROW) settle(narrow);
  }

  // Times `factor` to a tile of 64 rows.
  template <typename T> __device__ __forceinline__ void put(u32 tile, float factor) const {
#pragma unroll
    for (int c = 0; c < WIDE; c += 64) put_columns<T, 128, 64>(wide, c / 2, tile + c * 128, factor);
    if constexpr (NARROW != 0) put_columns<T, Head<D>::SWIZZLE, NARROW>(narrow, 0, tile + PANEL, factor);
  }

 private:
  template <typename T, int SWIZZLE, int COLUMNS, int M>
  static __device__ __forceinline__ void put_columns(const float (&acc)[M], int first, u32 panel, float factor) {
    const u32 row = threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < COLUMNS / 8; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const u32 at = (row + 8 * h) * SWIZZLE + i * 16, e = first + 4 * i + 2 * h;
        store_shared(panel + (at ^ (at >> 7 & (SWIZZLE / 16 - 1)) << 4) + threadIdx.x % 4 * 4,
                     pack2<T>(acc[e] * factor, acc[e + 1] * factor));
      }
  }
};

// A number each of two neighbouring tokens.
__device__ __forceinline__ float2 load_two(u32 at) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
  return v;
}
