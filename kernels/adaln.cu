// Layer norm with a scale and a shift per sample, and its gradient: see src/ops/adaln. The grid's second dimension is the
// samples, whose modulations lie `stride` apart.
// hot adaln_*
#include "common/rows.cuh"

template <bool PACKED, typename T>
__device__ __forceinline__ void forward(T* y, const T* x, const T* shift, u64 shift_stride, const T* scale, u64 scale_stride,
                                        u32 rows, int width, int lanes, float eps) {
  Share<T, PACKED> at(rows, width, lanes);
  float v[at.N], a[at.N], b[at.N];
  at.load_row(v, x);
  at.load_shared(a, scale + blockIdx.y * scale_stride);
  at.load_shared(b, shift + blockIdx.y * shift_stride);
  Statistics s = statistics(at, v, eps);
#pragma unroll
  for (int i = 0; i < at.N; ++i) v[i] = (v[i] - s.mean) * s.rstd * (1.0f + a[i]) + b[i];
  at.store_row(y, v);
}

template <bool PACKED, typename T>
__device__ __forceinline__ void backward(T* dx, const T* dy, const T* x, const T* scale, u64 scale_stride, u32 rows, int width,
                                         int lanes, float eps) {
  Share<T, PACKED> at(rows, width, lanes);
  // Of g = dy (1 + scale), and of g times the normalised x.
  float v[at.N], g[at.N], d[at.N], a[at.N], sums[2] = {0.0f, 0.0f};
  at.load_row(v, x);
  at.load_row(g, dy);
  at.load_row(d, dx);
  at.load_shared(a, scale + blockIdx.y * scale_stride);
  Statistics s = statistics(at, v, eps);
#pragma unroll
  for (int i = 0; i < at.N; ++i) {
    g[i] *= 1.0f + a[i];
    v[i] = (v[i] - s.mean) * s.rstd;
    sums[0] += g[i];
    sums[1] = fmaf(g[i], v[i], sums[1]);
  }
  row_sums<2>(sums, lanes);
  float n = (float)width, mean = sums[0] / n, along = sums[1] / n;
#pragma unroll
  for (int i = 0; i < at.N; ++i) d[i] += s.rstd * (g[i] - mean - v[i] * along);
  at.store_row(dx, d);
}

#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(1024)                                                                    \
      adaln_forward_##t(T* y, const T* x, const T* shift, u64 shift_stride, const T* scale, u64 scale_stride, u32 rows, \
                        int width, int lanes, float eps) {                                                              \
    if (is_packed<T>(width | shift_stride | scale_stride, y, x, shift, scale)) {                                        \
      forward<true>(y, x, shift, shift_stride, scale, scale_stride, rows, width, lanes, eps);                           \
    } else {                                                                                                            \
      forward<false>(y, x, shift, shift_stride, scale, scale_stride, rows, width, lanes, eps);                          \
    }                                                                                                                   \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(1024)                                                                    \
      adaln_backward_##t(T* dx, const T* dy, const T* x, const T* scale, u64 scale_stride, u32 rows, int width,         \
                         int lanes, float eps) {                                                                        \
    if (is_packed<T>(width | scale_stride, dx, dy, x, scale)) {                                                         \
      backward<true>(dx, dy, x, scale, scale_stride, rows, width, lanes, eps);                                          \
    } else {                                                                                                            \
      backward<false>(dx, dy, x, scale, scale_stride, rows, width, lanes, eps);                                         \
    }                                                                                                                   \
  }
FOR_EACH_TYPE(KERNELS)
