// Rows whose numbers stay in registers: a thread has the 16 bytes that lie side by side, `lanes` threads have a row. That is
// a power of two of a warp's, so that a block has several rows, or a whole block.
#pragma once
#include "common/elementwise.cuh"
#include "common/reduce.cuh"

// N numbers of up to 16 bytes from p on, of which the first `count` are there and the others 0. `PACKED`: all or none are,
// and p is a multiple of their bytes. (The load stands alone under its condition, so that several are under way together.)
template <bool PACKED, int N, typename T> __device__ __forceinline__ Pack<T, N> fetch(const T* p, int count) {
  Pack<T, N> a;
#pragma unroll
  for (int i = 0; i < N; ++i) a.v[i] = narrow<T>(0.0f);
  if constexpr (PACKED) {
    if (count > 0) a = *(const Pack<T, N>*)p;
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < count) a.v[i] = p[i];
  }
  return a;
}

// As many as there are in v.
template <bool PACKED, typename T, int N> __device__ __forceinline__ void load(float (&v)[N], const T* p, int count) {
  constexpr int P = N < 16 / sizeof(T) ? N : 16 / sizeof(T);
  Pack<T, P> a[N / P];
#pragma unroll
  for (int i = 0; i < N / P; ++i) a[i] = fetch<PACKED, P>(p + i * P, PACKED ? count : count - i * P);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = widen(a[i / P].v[i % P]);
}

// The first `count` of v to p on, as above.
template <bool PACKED, typename T, int N> __device__ __forceinline__ void store(T* p, const float (&v)[N], int count) {
  if constexpr (PACKED) {
    Pack<T, N> a;
#pragma unroll
    for (int i = 0; i < N; ++i) a.v[i] = narrow<T>(v[i]);
    if (count > 0) *(Pack<T, N>*)p = a;
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < count) p[i] = narrow<T>(v[i]);
  }
}

// A thread's share of a row of `width` numbers. Blocks of the grid's second dimension have `rows` rows each.
template <typename T, bool PACKED> struct Share {
  static constexpr int N = 16 / sizeof(T);
  u64 row;
  int first, count, width, lanes;

  __device__ __forceinline__ Share(u32 rows, int width, int lanes) : width(width), lanes(lanes) {
    u32 r = blockIdx.x, thread = threadIdx.x;
    if (lanes <= 32) {
      u32 shift = __popc(lanes - 1);
      r = r * (blockDim.x >> shift) + (thread >> shift);
      thread &= lanes - 1;
    }
    row = (u64)blockIdx.y * rows + r;
    first = thread * N;
    count = r < rows ? width - first : 0;
  }

  // Of the row of x, of which each has a row like this, or of what is the same for all rows.
  __device__ __forceinline__ void load_row(float (&v)[N], const T* x) const { load_shared(v, x + row * width); }
  template <typename U> __device__ __forceinline__ void load_shared(float (&v)[N], const U* x) const {
    load<PACKED>(v, x + first, count);
  }
  __device__ __forceinline__ void store_row(T* y, const float (&v)[N]) const {
    store<PACKED>(y + row * width + first, v, count);
  }
  __device__ __forceinline__ bool has(int i) const { return (PACKED ? 0 : i) < count; }
};

// Whether rows of a width, and what begins at the pointers, can be had 16 bytes at a time.
template <typename T, typename... P> __device__ __forceinline__ bool is_packed(u64 width, const P*... p) {
  return width % (16 / sizeof(T)) == 0 && are_aligned(p...);
}

struct Statistics {
  float mean, rstd;
};

// Mean and reciprocal standard deviation of a row, in two passes (rounds 0 and 1).
template <typename Share, int N>
__device__ __forceinline__ Statistics statistics(const Share& at, const float (&v)[N], float eps) {
  float total[1] = {0.0f}, squares[1] = {0.0f};
#pragma unroll
  for (int i = 0; i < N; ++i) total[0] += v[i];
  row_sums<0>(total, at.lanes);
  float n = (float)at.width, mean = total[0] / n;
#pragma unroll
  for (int i = 0; i < N; ++i) squares[0] += at.has(i) ? (v[i] - mean) * (v[i] - mean) : 0.0f;
  row_sums<1>(squares, at.lanes);
  return {mean, 1.0f / sqrtf(squares[0] / n + eps)};
}
