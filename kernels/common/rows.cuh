// Rows whose numbers stay in registers: a thread has the 16 bytes that lie side by side, `lanes` threads have a row. That is
// a power of two of a warp's, so that a block has several rows, or a whole block.
#pragma once
#include "common/elementwise.cuh"
#include "common/reduce.cuh"

// N numbers from p on, of which the first `count` are there and the others 0. `packed`: all or none are, and p is a
// multiple of 16 bytes.
template <typename T, int N> __device__ __forceinline__ void load(float (&v)[N], const T* p, int count, bool packed) {
  constexpr int P = N < 16 / sizeof(T) ? N : 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = 0.0f;
  if (packed) {
    if (count <= 0) return;
#pragma unroll
    for (int i = 0; i < N; i += P) {
      auto a = *(const Pack<T, P>*)(p + i);
#pragma unroll
      for (int k = 0; k < P; ++k) v[i + k] = widen(a.v[k]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < count) v[i] = widen(p[i]);
  }
}

// The first `count` of v to p on, as above.
template <typename T, int N> __device__ __forceinline__ void store(T* p, const float (&v)[N], int count, bool packed) {
  if (packed) {
    if (count <= 0) return;
    Pack<T, N> a;
#pragma unroll
    for (int i = 0; i < N; ++i) a.v[i] = narrow<T>(v[i]);
    *(Pack<T, N>*)p = a;
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < count) p[i] = narrow<T>(v[i]);
  }
}

// A thread's share of a row of `width` numbers. Blocks of the grid's second dimension have `rows` rows each.
template <typename T> struct Share {
  static constexpr int N = 16 / sizeof(T);
  u64 row;
  int first, count, width, lanes;
  bool packed;

  __device__ __forceinline__ Share(u32 rows, int width, int lanes, bool aligned)
      : width(width), lanes(lanes), packed(aligned && width % N == 0) {
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
    load(v, x + first, count, packed);
  }
  __device__ __forceinline__ void store_row(T* y, const float (&v)[N]) const {
    store(y + row * width + first, v, count, packed);
  }
  __device__ __forceinline__ bool has(int i) const { return i < count; }
};

struct Statistics {
  float mean, rstd;
};

// Mean and reciprocal standard deviation of a row, in two passes (rounds 0 and 1).
template <typename T, int N> __device__ __forceinline__ Statistics statistics(const Share<T>& at, const float (&v)[N], float eps) {
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
