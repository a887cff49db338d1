// Layer norm with a scale and a shift per sample, and its gradient: see src/ops/adaln. The grid's second dimension is the
// samples, whose modulations lie `stride` apart.
// hot adaln_*
#include "common/rows.cuh"

// What is the same for all rows of a sample.
template <typename T> struct Chunk {
  const T* first;
  u64 stride;
  __device__ __forceinline__ const T* of_sample() const { return first + blockIdx.y * stride; }
};

template <typename T, bool PACKED, int TURNS>
__device__ __forceinline__ void forward(T* y, const T* x, Chunk<T> shift, Chunk<T> scale, u32 rows, int width, int lanes,
                                        float eps) {
  typedef Share<T, PACKED, TURNS> Row;
  constexpr int N = Row::N;
  const Row at(rows, width, lanes);
  const Kept<Row, T, TURNS> row(at, x);
  const T *a = scale.of_sample(), *b = shift.of_sample();
  const Statistics s = statistics(at, row, eps);
  at.each([&](int j) {
    float v[N], of_a[N], of_b[N];
    row.get(v, j);
    at.load_shared(of_a, a, j);
    at.load_shared(of_b, b, j);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = fmaf((v[i] - s.mean) * s.rstd, 1.0f + of_a[i], of_b[i]);
    at.store_row(y, v, j);
  });
}

// Adds to dx; and gated, if there is such a thing, becomes gate times the sum, as it is stored.
template <typename T, bool PACKED, int TURNS>
__device__ __forceinline__ void backward(T* dx, const T* dy, const T* x, Chunk<T> scale, T* gated, Chunk<T> gate, u32 rows,
                                         int width, int lanes, float eps) {
  typedef Share<T, PACKED, TURNS> Row;
  constexpr int N = Row::N;
  const Row at(rows, width, lanes);
  const Kept<Row, T, TURNS> row(at, x), of_dy(at, dy);
  const T *a = scale.of_sample(), *of_gate = gate.of_sample();
  const Statistics s = statistics(at, row, eps);
  // g = dy (1 + scale), and the normalised x.
  auto both = [&](float (&g)[N], float (&v)[N], int j) {
    float of_a[N];
    of_dy.get(g, j);
    row.get(v, j);
    at.load_shared(of_a, a, j);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      g[i] = fmaf(g[i], of_a[i], g[i]);
      v[i] = (v[i] - s.mean) * s.rstd;
    }
  };
  float sums[2], n = (float)width;
  at.template sums<2>(sums, [&](int j, float (&part)[2][N]) {
    float g[N], v[N];
    both(g, v, j);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      part[0][i] += g[i];
      part[1][i] = fmaf(g[i], v[i], part[1][i]);
    }
  });
  const float mean = sums[0] / n, along = sums[1] / n;
  at.each([&](int j) {
    float g[N], v[N], d[N];
    at.load_row(d, dx, j);
    both(g, v, j);
#pragma unroll
    for (int i = 0; i < N; ++i) d[i] = fmaf(s.rstd, fmaf(-v[i], along, g[i] - mean), d[i]);
    at.store_row(dx, d, j);
    if (gated) {
      float by[N];
      at.load_shared(by, of_gate, j);
#pragma unroll
      for (int i = 0; i < N; ++i) d[i] = by[i] * widen(narrow<T>(d[i]));
      at.store_row(gated, d, j);
    }
  });
}

#define KERNELS(T, t)                                                                                                   \
  ROW_KERNELS(adaln_forward, T, t, forward,                                                                             \
              (T * y, const T* x, Chunk<T> shift, Chunk<T> scale, u32 rows, int width, int lanes, float eps),           \
              (y, x, shift, scale, rows, width, lanes, eps),                                                            \
              is_packed<T>(width | shift.stride | scale.stride, y, x, shift.first, scale.first))                        \
  ROW_KERNELS(adaln_backward, T, t, backward,                                                                           \
              (T * dx, const T* dy, const T* x, Chunk<T> scale, T* gated, Chunk<T> gate, u32 rows, int width, int lanes, \
               float eps),                                                                                              \
              (dx, dy, x, scale, gated, gate, rows, width, lanes, eps),                                                 \
              is_packed<T>(width | scale.stride | gate.stride, dx, dy, x, scale.first, gated, gate.first))
FOR_EACH_TYPE(KERNELS)
