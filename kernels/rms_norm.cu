// Root-mean-square normalisation over rows, and its gradient: see src/ops/rms_norm.
// hot rms_norm_*
#include "common/rows.cuh"

template <bool PACKED, typename T>
__device__ __forceinline__ void forward(T* y, const T* x, const float* weight, u32 rows, int width, int lanes, float eps) {
  Share<T, PACKED> at(rows, width, lanes);
  float v[at.N], w[at.N], squares[1] = {0.0f};
  at.load_row(v, x);
  at.load_shared(w, weight);
#pragma unroll
  for (int i = 0; i < at.N; ++i) squares[0] += v[i] * v[i];
  row_sums<0>(squares, lanes);
  float r = 1.0f / sqrtf(squares[0] / (float)width + eps);
#pragma unroll
  for (int i = 0; i < at.N; ++i) v[i] = v[i] * r * w[i];
  at.store_row(y, v);
}

template <bool PACKED, typename T>
__device__ __forceinline__ void backward(T* d, const T* x, const float* weight, u32 rows, int width, int lanes, float eps) {
  Share<T, PACKED> at(rows, width, lanes);
  // Of x x and of w dy x.
  float v[at.N], dy[at.N], w[at.N], sums[2] = {0.0f, 0.0f};
  at.load_row(v, x);
  at.load_row(dy, d);
  at.load_shared(w, weight);
#pragma unroll
  for (int i = 0; i < at.N; ++i) {
    dy[i] *= w[i];
    sums[0] += v[i] * v[i];
    sums[1] = fmaf(dy[i], v[i], sums[1]);
  }
  row_sums<0>(sums, lanes);
  float n = (float)width, r = 1.0f / sqrtf(sums[0] / n + eps), along = sums[1] / n * r * r;
#pragma unroll
  for (int i = 0; i < at.N; ++i) dy[i] = r * (dy[i] - v[i] * along);
  at.store_row(d, dy);
}

#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(1024) rms_norm_forward_##t(                                              \
      T* y, const T* x, const float* weight, u32 rows, int width, int lanes, float eps) {                               \
    if (is_packed<T>(width, y, x, weight)) {                                                                            \
      forward<true>(y, x, weight, rows, width, lanes, eps);                                                             \
    } else {                                                                                                            \
      forward<false>(y, x, weight, rows, width, lanes, eps);                                                            \
    }                                                                                                                   \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(1024) rms_norm_backward_##t(                                             \
      T* d, const T* x, const float* weight, u32 rows, int width, int lanes, float eps) {                               \
    if (is_packed<T>(width, d, x, weight)) {                                                                            \
      backward<true>(d, x, weight, rows, width, lanes, eps);                                                            \
    } else {                                                                                                            \
      backward<false>(d, x, weight, rows, width, lanes, eps);                                                           \
    }                                                                                                                   \
  }
FOR_EACH_TYPE(KERNELS)
