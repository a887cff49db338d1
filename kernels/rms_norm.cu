// Root-mean-square normalisation over rows, and its gradient: see src/ops/rms_norm.
// hot rms_norm_*
#include "common/rows.cuh"

template <typename T, bool PACKED, int TURNS>
__device__ __forceinline__ void forward(T* y, const T* x, const float* weight, u32 rows, int width, int lanes, float eps) {
  typedef Share<T, PACKED, TURNS> Row;
  constexpr int N = Row::N;
  const Row at(rows, width, lanes);
  const Kept<Row, T, TURNS> row(at, x);
  float squares[1];
  at.template sums<0>(squares, [&](int j, float (&part)[1][N]) {
    float v[N];
    row.get(v, j);
#pragma unroll
    for (int i = 0; i < N; ++i) part[0][i] = fmaf(v[i], v[i], part[0][i]);
  });
  const float r = 1.0f / sqrtf(squares[0] / (float)width + eps);
  at.each([&](int j) {
    float v[N], w[N];
    row.get(v, j);
    at.load_shared(w, weight, j);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = v[i] * r * w[i];
    at.store_row(y, v, j);
  });
}

template <typename T, bool PACKED, int TURNS>
__device__ __forceinline__ void backward(T* d, const T* x, const float* weight, u32 rows, int width, int lanes, float eps) {
  typedef Share<T, PACKED, TURNS> Row;
  constexpr int N = Row::N;
  const Row at(rows, width, lanes);
  const Kept<Row, T, TURNS> row(at, x), of_dy(at, d);
  auto weighted = [&](float (&g)[N], int j) {
    float w[N];
    of_dy.get(g, j);
    at.load_shared(w, weight, j);
#pragma unroll
    for (int i = 0; i < N; ++i) g[i] *= w[i];
  };
  // Of x x and of w dy x.
  float sums[2];
  at.template sums<0>(sums, [&](int j, float (&part)[2][N]) {
    float v[N], g[N];
    row.get(v, j);
    weighted(g, j);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      part[0][i] = fmaf(v[i], v[i], part[0][i]);
      part[1][i] = fmaf(g[i], v[i], part[1][i]);
    }
  });
  const float n = (float)width, r = 1.0f / sqrtf(sums[0] / n + eps), along = sums[1] / n * r * r;
  at.each([&](int j) {
    float v[N], g[N];
    row.get(v, j);
    weighted(g, j);
#pragma unroll
    for (int i = 0; i < N; ++i) g[i] = r * fmaf(-v[i], along, g[i]);
    at.store_row(d, g, j);
  });
}

#define KERNELS(T, t)                                                                                                   \
  ROW_KERNELS(rms_norm_forward, T, t, forward,                                                                          \
              (T * y, const T* x, const float* weight, u32 rows, int width, int lanes, float eps),                      \
              (y, x, weight, rows, width, lanes, eps), is_packed<T>(width, y, x, weight))                               \
  ROW_KERNELS(rms_norm_backward, T, t, backward,                                                                        \
              (T * d, const T* x, const float* weight, u32 rows, int width, int lanes, float eps),                      \
              (d, x, weight, rows, width, lanes, eps), is_packed<T>(width, d, x, weight))
FOR_EACH_TYPE(KERNELS)
