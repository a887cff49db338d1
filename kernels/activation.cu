// Pointwise non-linearities, in place: see src/ops/activation.
// hot activation_*
#include "common/activations.cuh"
#include "common/elementwise.cuh"

struct GeluTanhBackward {
  static __device__ float of(float d, float v) { return d * GeluTanh::slope(v); }
};
struct Multiply {
  static __device__ float of(float x, float y) { return x * y; }
};
struct Add {
  static __device__ float of(float x, float y) { return x + y; }
};

#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void activation_gelu_tanh_##t(T* x, u64 n) { map_in_place<GeluTanh>(x, n); }                    \
  extern "C" __global__ void activation_gelu_erf_##t(T* x, u64 n) { map_in_place<GeluErf>(x, n); }                      \
  extern "C" __global__ void activation_quick_gelu_##t(T* x, u64 n) { map_in_place<QuickGelu>(x, n); }                  \
  extern "C" __global__ void activation_silu_##t(T* x, u64 n) { map_in_place<Silu>(x, n); }                             \
  extern "C" __global__ void activation_gelu_tanh_backward_##t(T* d, const T* x, u64 n) {                               \
    zip_in_place<GeluTanhBackward>(d, x, n);                                                                            \
  }                                                                                                                     \
  extern "C" __global__ void activation_multiply_##t(T* x, const T* y, u64 n) { zip_in_place<Multiply>(x, y, n); }      \
  extern "C" __global__ void activation_add_##t(T* x, const T* y, u64 n) { zip_in_place<Add>(x, y, n); }
FOR_EACH_TYPE(KERNELS)
