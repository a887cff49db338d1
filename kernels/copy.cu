// Rows put together in another order, blocks put in their place, and numbers in another type: see src/ops/copy. What is only
// moved is moved in units as large as sizes and addresses allow, whatever the bytes mean.
// hot copy_*
#include "common/map.cuh"

// Row i of `out` <- row `rows[i]` of `x`; `width` units a row, `n` in all.
template <typename T> __device__ __forceinline__ void gather(T* out, const T* x, const u32* rows, u32 width, u32 n) {
  u64 at = global_thread();
  if (at >= n) return;
  u32 i = at, row = i / width;
  out[i] = x[(u64)rows[row] * width + (i - row * width)];
}

// Distances, in units, from a sample to the next and from a row to the next.
struct Strides {
  u64 sample, row;
};

// `n` units, of which `width` are side by side and `rows` such rows are in a sample.
template <typename T>
__device__ __forceinline__ void block(T* out, Strides to, const T* x, Strides from, u32 rows, u32 width, u32 n) {
  u64 at = global_thread();
  if (at >= n) return;
  u32 i = at, line = i / width, column = i - line * width;
  u32 sample = line / rows, row = line - sample * rows;
  out[sample * to.sample + row * to.row + column] = x[sample * from.sample + row * from.row + column];
}

#define MOVES(T, bytes)                                                                                                 \
  extern "C" __global__ void copy_gather_##bytes(T* out, const T* x, const u32* rows, u32 width, u32 n) {               \
    gather(out, x, rows, width, n);                                                                                     \
  }                                                                                                                     \
  extern "C" __global__ void copy_block_##bytes(T* out, Strides to, const T* x, Strides from, u32 rows, u32 width,      \
                                                u32 n) {                                                                \
    block(out, to, x, from, rows, width, n);                                                                            \
  }
MOVES(u8, 1) MOVES(u16, 2) MOVES(u32, 4) MOVES(uint2, 8) MOVES(uint4, 16)

struct Same {
  static __device__ float of(float v) { return v; }
};
#define CASTS(T, t, U, u)                                                                                               \
  extern "C" __global__ void copy_cast_##t##_##u(U* out, const T* x, u64 n) { map<Same>(out, x, n); }
CASTS(float, f32, f16, f16) CASTS(float, f32, bf16, bf16)
CASTS(f16, f16, float, f32) CASTS(f16, f16, bf16, bf16)
CASTS(bf16, bf16, float, f32) CASTS(bf16, bf16, f16, f16)
