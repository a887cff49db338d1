// Layer normalisation over rows: see src/ops/layer_norm.
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

#define KERNELS(T, t)                                                                                                   \
  ROW_KERNELS(layer_norm_forward, T, t, forward,                                                                        \
              (T * y, const T* x, const float* weight, const float* bias, u32 rows, int width, int lanes, float eps),   \
              (y, x, weight, bias, rows, width, lanes, eps), is_packed<T>(width, y, x, weight, bias))
FOR_EACH_TYPE(KERNELS)
