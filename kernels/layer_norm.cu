// Layer normalisation over rows: see src/ops/layer_norm.
// hot layer_norm_*
#include "common/rows.cuh"

template <bool PACKED, typename T>
__device__ __forceinline__ void forward(T* y, const T* x, const float* weight, const float* bias, u32 rows, int width,
                                        int lanes, float eps) {
  Share<T, PACKED> at(rows, width, lanes);
  float v[at.N], w[at.N], b[at.N];
  at.load_row(v, x);
  at.load_shared(w, weight);
  at.load_shared(b, bias);
  Statistics s = statistics(at, v, eps);
#pragma unroll
  for (int i = 0; i < at.N; ++i) v[i] = (v[i] - s.mean) * s.rstd * w[i] + b[i];
  at.store_row(y, v);
}

#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(1024) layer_norm_forward_##t(                                            \
      T* y, const T* x, const float* weight, const float* bias, u32 rows, int width, int lanes, float eps) {            \
    if (is_packed<T>(width, y, x, weight, bias)) {                                                                      \
      forward<true>(y, x, weight, bias, rows, width, lanes, eps);                                                       \
    } else {                                                                                                            \
      forward<false>(y, x, weight, bias, rows, width, lanes, eps);                                                      \
    }                                                                                                                   \
  }
FOR_EACH_TYPE(KERNELS)
