// Root-mean-square normalisation over rows, and its gradient: see src/ops/rms_norm.
// hot rms_norm_*
#include "common/rows.cuh"

// 1/rms of the first `kept` rows goes to `inverse`. GIVEN: it is there, of all rows.
template <bool GIVEN, bool PACKED, typename T>
__device__ __forceinline__ void forward(T* y, const T* x, const float* weight, u32 rows, int width, int lanes, float* inverse, u32 kept, float eps) {
  Share<T, PACKED> at(rows, width, lanes);
  float v[at.N], w[at.N], r;
  at.load_row(v, x);
  at.load_shared(w, weight);
  if constexpr (GIVEN) {
    r = at.row < rows ? inverse[at.row] : 0.0f;
  } else {
    float squares[1] = {0.0f};
#pragma unroll
    for (int i = 0; i < at.N; ++i) squares[0] += v[i] * v[i];
    row_sums<0>(squares, lanes);
    r = 1.0f / sqrtf(squares[0] / (float)width + eps);
    if (at.first == 0 && at.row < kept) inverse[at.row] = r;
  }
#pragma unroll
  for (int i = 0; i < at.N; ++i) v[i] = v[i] * r * w[i];
  at.store_row(y, v);
}

template <bool PACKED, typename T>
__device__ __forceinline__ void backward(T* d, const T* x, const float* weight, u32 rows, int width, int lanes, const float* inverse) {
  Share<T, PACKED> at(rows, width, lanes);
  float v[at.N], dy[at.N], w[at.N], sums[1] = {0.0f};
  at.load_row(v, x);
  at.load_row(dy, d);
  at.load_shared(w, weight);
#pragma unroll
  for (int i = 0; i < at.N; ++i) {
    dy[i] *= w[i];
    sums[0] = fmaf(dy[i], v[i], sums[0]);
  }
  row_sums<0>(sums, lanes);
  const float r = at.row < rows ? inverse[at.row] : 0.0f;
  const float along = sums[0] / (float)width * r * r;
#pragma unroll
  for (int i = 0; i < at.N; ++i) dy[i] = r * (dy[i] - v[i] * along);
  at.store_row(d, dy);
}

#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(1024) rms_norm_forward_##t(                                              \
      T* y, const T* x, const float* weight, u32 rows, int width, int lanes, float* inverse, u32 kept, float eps) {     \
    if (is_packed<T>(width, y, x, weight)) {                                                                            \
      forward<false, true>(y, x, weight, rows, width, lanes, inverse, kept, eps);                                       \
    } else {                                                                                                            \
      forward<false, false>(y, x, weight, rows, width, lanes, inverse, kept, eps);                                      \
    }                                                                                                                   \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(1024) rms_norm_forward_again_##t(                                        \
      T* y, const T* x, const float* weight, u32 rows, int width, int lanes, float* inverse) {                          \
    if (is_packed<T>(width, y, x, weight)) {                                                                            \
      forward<true, true>(y, x, weight, rows, width, lanes, inverse, 0, 0.0f);                                          \
    } else {                                                                                                            \
      forward<true, false>(y, x, weight, rows, width, lanes, inverse, 0, 0.0f);                                         \
    }                                                                                                                   \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(1024) rms_norm_backward_##t(                                             \
      T* d, const T* x, const float* weight, u32 rows, int width, int lanes, const float* inverse) {                    \
    if (is_packed<T>(width, d, x, weight)) {                                                                            \
      backward<true>(d, x, weight, rows, width, lanes, inverse);                                                        \
    } else {                                                                                                            \
      backward<false>(d, x, weight, rows, width, lanes, inverse);                                                       \
    }                                                                                                                   \
  }
FOR_EACH_TYPE(KERNELS)
