// Root-mean-square normalisation over rows, and its gradient: see src/ops/rms_norm.
// hot rms_norm_*
#include "common/rows.cuh"

template <typename Row, typename Of, typename T>
__device__ __forceinline__ void scaled(T* y, const Row& at, const Of& row, const float* weight, float r) {
  constexpr int N = Row::N;
  at.each([&](int j) {
    float v[N], w[N];
    row.get(v, j);
    at.load_shared(w, weight, j);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = v[i] * r * w[i];
    at.store_row(y, v, j);
  });
}

// 1/rms of the first `kept` rows goes to `inverse`.
template <typename T, bool PACKED, int TURNS>
__device__ __forceinline__ void forward(T* y, const T* x, const float* weight, u32 rows, int width, int lanes,
                                        float* inverse, u32 kept, float eps) {
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
  if (at.first == 0 && at.row < kept) inverse[at.row] = r;
  scaled(y, at, row, weight, r);
}

// 1/rms of all rows is there.
template <typename T, bool PACKED, int TURNS>
__device__ __forceinline__ void forward_again(T* y, const T* x, const float* weight, u32 rows, int width, int lanes,
                                              const float* inverse) {
  typedef Share<T, PACKED, TURNS> Row;
  const Row at(rows, width, lanes);
  const Kept<Row, T, TURNS> row(at, x);
  scaled(y, at, row, weight, at.row < rows ? inverse[at.row] : 0.0f);
}

template <typename T, bool PACKED, int TURNS>
__device__ __forceinline__ void backward(T* d, const T* x, const float* weight, u32 rows, int width, int lanes,
                                         const float* inverse) {
  typedef Share<T, PACKED, TURNS> Row;
  constexpr int N = Row::N;
  const Row at(rows, width, lanes);
  const Kept<Row, T, TURNS> row(at, x), of_dy(at, d);
  const float r = at.row < rows ? inverse[at.row] : 0.0f;
  auto weighted = [&](float (&g)[N], int j) {
    float w[N];
    of_dy.get(g, j);
    at.load_shared(w, weight, j);
#pragma unroll
    for (int i = 0; i < N; ++i) g[i] *= w[i];
  };
  // Of w dy x.
  float sums[1];
  at.template sums<0>(sums, [&](int j, float (&part)[1][N]) {
    float v[N], g[N];
    row.get(v, j);
    weighted(g, j);
#pragma unroll
    for (int i = 0; i < N; ++i) part[0][i] = fmaf(g[i], v[i], part[0][i]);
  });
  const float along = sums[0] / (float)width * r * r;
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
              (T * y, const T* x, const float* weight, u32 rows, int width, int lanes, float* inverse, u32 kept,        \
               float eps),                                                                                              \
              (y, x, weight, rows, width, lanes, inverse, kept, eps), is_packed<T>(width, y, x, weight))                \
  ROW_KERNELS(rms_norm_forward_again, T, t, forward_again,                                                              \
              (T * y, const T* x, const float* weight, u32 rows, int width, int lanes, const float* inverse),           \
              (y, x, weight, rows, width, lanes, inverse), is_packed<T>(width, y, x, weight))                           \
  ROW_KERNELS(rms_norm_backward, T, t, backward,                                                                        \
              (T * d, const T* x, const float* weight, u32 rows, int width, int lanes, const float* inverse),           \
              (d, x, weight, rows, width, lanes, inverse), is_packed<T>(width, d, x, weight))
FOR_EACH_TYPE(KERNELS)
