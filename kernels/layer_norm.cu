// Layer normalisation over rows, and its gradient: see src/ops/layer_norm.
// hot layer_norm_*
#include "common/rows.cuh"

template <typename T, bool PACKED, int TURNS>
__device__ __forceinline__ void forward(T* y, const T* x, const float* weight, const float* bias, u32 rows, int width,
                                        int lanes, float eps) {
  typedef Share<T, PACKED, TURNS> Row;
  constexpr int N = Row::N;
  const Row at(rows, width, lanes);
  const Kept<Row, T, TURNS> row(at, x);
  const Statistics s = statistics(at, row, eps);
  at.each([&](int j) {
    float v[N], w[N], b[N];
    row.get(v, j);
    at.load_shared(w, weight, j);
    at.load_shared(b, bias, j);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = fmaf((v[i] - s.mean) * s.rstd, w[i], b[i]);
    at.store_row(y, v, j);
  });
}

// dx += rstd (g - mean of g - hat (mean of g hat)), where g = dy weight and hat is x normalised.
template <typename T, bool PACKED, int TURNS>
__device__ __forceinline__ void backward(T* dx, const T* dy, const T* x, const float* weight, u32 rows, int width, int lanes,
                                         float eps) {
  typedef Share<T, PACKED, TURNS> Row;
  constexpr int N = Row::N;
  const Row at(rows, width, lanes);
  const Kept<Row, T, TURNS> row(at, x), of_dy(at, dy);
  const Statistics s = statistics(at, row, eps);
  auto both = [&](float (&g)[N], float (&hat)[N], int j) {
    float w[N];
    of_dy.get(g, j);
    row.get(hat, j);
    at.load_shared(w, weight, j);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      g[i] *= w[i];
      hat[i] = (hat[i] - s.mean) * s.rstd;
    }
  };
  float sums[2];
  at.template sums<2>(sums, [&](int j, float (&part)[2][N]) {
    float g[N], hat[N];
    both(g, hat, j);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      part[0][i] += g[i];
      part[1][i] = fmaf(g[i], hat[i], part[1][i]);
    }
  });
  const float mean = sums[0] / (float)width, along = sums[1] / (float)width;
  at.each([&](int j) {
    float g[N], hat[N], d[N];
    both(g, hat, j);
    at.load_row(d, dx, j);
#pragma unroll
    for (int i = 0; i < N; ++i) d[i] += s.rstd * (g[i] - mean - hat[i] * along);
    at.store_row(dx, d, j);
  });
}

#define KERNELS(T, t)                                                                                                   \
  ROW_KERNELS(layer_norm_forward, T, t, forward,                                                                        \
              (T * y, const T* x, const float* weight, const float* bias, u32 rows, int width, int lanes, float eps),   \
              (y, x, weight, bias, rows, width, lanes, eps), is_packed<T>(width, y, x, weight, bias))                   \
  ROW_KERNELS(layer_norm_backward, T, t, backward,                                                                      \
              (T * dx, const T* dy, const T* x, const float* weight, u32 rows, int width, int lanes, float eps),        \
              (dx, dy, x, weight, rows, width, lanes, eps), is_packed<T>(width, dx, dy, x, weight))
FOR_EACH_TYPE(KERNELS)
