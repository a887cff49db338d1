// Rows that `lanes` threads share, in turns of 16 bytes of each: a power of two of a warp's, so that a block has several rows,
// or a whole block. What a thread has of a row stays in registers, up to 6 turns of it; longer rows are read again for every
// pass over them.
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

// A thread's share of a row of `width` numbers, `TURNS` times 16 bytes, or as many as there are if that is 0. Blocks of the
// grid's second dimension have `rows` rows each. Of one turn, a row has up to a warp; of 3, a warp; of 6, whole warps; of as
// many as there are, the block.
template <typename T, bool PACKED, int TURNS> struct Share {
  static constexpr int N = 16 / sizeof(T);
  u64 row;
  int first, width, lanes;

  __device__ __forceinline__ Share(u32 rows, int width, int lanes) : width(width), lanes(lanes) {
    u32 r = blockIdx.x, thread = threadIdx.x;
    if (lanes <= 32) {
      u32 shift = __popc(lanes - 1);
      r = r * (blockDim.x >> shift) + (thread >> shift);
      thread &= lanes - 1;
    }
    row = (u64)blockIdx.y * rows + r;
    // Beyond the rows there is nothing.
    first = r < rows ? thread * N : width;
  }

  // Number of the first of turn j, and how many are left from there on.
  __device__ __forceinline__ int at(int j) const { return first + j * lanes * N; }
  __device__ __forceinline__ int count(int j) const { return width - at(j); }
  __device__ __forceinline__ bool has(int j, int i) const { return (PACKED ? 0 : i) < count(j); }

  template <typename F> __device__ __forceinline__ void each(F f) const {
    if constexpr (TURNS > 0) {
#pragma unroll
      for (int j = 0; j < TURNS; ++j) f(j);
    } else {
#pragma unroll 1
      for (int j = 0; j * lanes * N < width; ++j) f(j);
    }
  }

  // Of the row of x, of which each has a row like this, or of what is the same for all rows.
  __device__ __forceinline__ void load_row(float (&v)[N], const T* x, int j) const { load_shared(v, x + row * width, j); }
  template <typename U> __device__ __forceinline__ void load_shared(float (&v)[N], const U* x, int j) const {
    load<PACKED>(v, x + at(j), count(j));
  }
  __device__ __forceinline__ void store_row(T* y, const float (&v)[N], int j) const {
    store<PACKED>(y + row * width + at(j), v, count(j));
  }

  // The sum of f(j)[0..N] over the row for each of K functions: f adds to its second argument.
  template <int ROUND, int K, typename F> __device__ __forceinline__ void sums(float (&total)[K], F f) const {
    float part[K][N];
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) part[k][i] = 0.0f;
    each([&](int j) { f(j, part); });
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int step = N / 2; step > 0; step /= 2)
#pragma unroll
        for (int i = 0; i < step; ++i) part[k][i] += part[k][i + step];
      total[k] = part[k][0];
    }
    if constexpr (TURNS == 1) {
      lane_sums(total, lanes);
    } else if (TURNS == 3 || (TURNS == 6 && lanes == 32)) {
      lane_sums(total, 32);
    } else {
      block_sums<ROUND>(total, lanes);
    }
  }
};

// What a thread has of a row: kept, or where it is read again.
template <typename Share, typename T, int TURNS> struct Kept {
  float v[TURNS][Share::N];
  __device__ __forceinline__ Kept(const Share& at, const T* x) {
#pragma unroll
    for (int j = 0; j < TURNS; ++j) at.load_row(v[j], x, j);
  }
  __device__ __forceinline__ void get(float (&to)[Share::N], int j) const {
#pragma unroll
    for (int i = 0; i < Share::N; ++i) to[i] = v[j][i];
  }
};
template <typename Share, typename T> struct Kept<Share, T, 0> {
  const Share& at;
  const T* x;
  __device__ __forceinline__ Kept(const Share& at, const T* x) : at(at), x(x) {}
  __device__ __forceinline__ void get(float (&to)[Share::N], int j) const { at.load_row(to, x, j); }
};

// Whether rows of a width, and what begins at the pointers, can be had 16 bytes at a time.
template <typename T, typename... P> __device__ __forceinline__ bool is_packed(u64 width, const P*... p) {
  return width % (16 / sizeof(T)) == 0 && are_aligned(p...);
}

struct Statistics {
  float mean, rstd;
};

// Mean and reciprocal standard deviation of a row, in two passes (rounds 0 and 1).
template <typename Share, typename Row>
__device__ __forceinline__ Statistics statistics(const Share& at, const Row& row, float eps) {
  constexpr int N = Share::N;
  float total[1], squares[1], n = (float)at.width;
  at.template sums<0>(total, [&](int j, float (&part)[1][N]) {
    float v[N];
    row.get(v, j);
#pragma unroll
    for (int i = 0; i < N; ++i) part[0][i] += v[i];
  });
  float mean = total[0] / n;
  at.template sums<1>(squares, [&](int j, float (&part)[1][N]) {
    float v[N];
    row.get(v, j);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float apart = at.has(j, i) ? v[i] - mean : 0.0f;
      part[0][i] = fmaf(apart, apart, part[0][i]);
    }
  });
  return {mean, 1.0f / sqrtf(squares[0] / n + eps)};
}

// Entries of `BODY<T, PACKED, TURNS>(ARGS)` for a storage type: by how many turns a row is, and for rows of any length.
// Those of several turns are for what can be had 16 bytes at a time (`IS_PACKED` of a storage type).
#define ROW_KERNELS(NAME, T, t, BODY, PARAMETERS, ARGS, IS_PACKED)                                                      \
  extern "C" __global__ void __launch_bounds__(256, 4) NAME##_1_##t PARAMETERS {                                        \
    if (IS_PACKED) {                                                                                                    \
      BODY<T, true, 1> ARGS;                                                                                            \
    } else {                                                                                                            \
      BODY<T, false, 1> ARGS;                                                                                           \
    }                                                                                                                   \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(128, 5) NAME##_3_##t PARAMETERS { BODY<T, true, 3> ARGS; }               \
  extern "C" __global__ void __launch_bounds__(128, 3) NAME##_6_##t PARAMETERS { BODY<T, true, 6> ARGS; }               \
  extern "C" __global__ void __launch_bounds__(256, 4) NAME##_long_##t PARAMETERS {                                     \
    if (IS_PACKED) {                                                                                                    \
      BODY<T, true, 0> ARGS;                                                                                            \
    } else {                                                                                                            \
      BODY<T, false, 0> ARGS;                                                                                           \
    }                                                                                                                   \
  }
