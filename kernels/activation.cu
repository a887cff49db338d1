// Pointwise non-linearities, in place: see src/ops/activation.
// hot activation_*
#include "common/activations.cuh"
#include "common/elementwise.cuh"

// Of those that are v sigmoid(inner(v)).
template <typename F, typename T> struct Gated {
  static __device__ float of(float v) { return v * sigmoid_to<T>(F::inner(v)); }
};
template <typename T> struct GeluTanhBackward {
  static __device__ float of(float d, float v) {
    return d * GeluTanh::slope(v, sigmoid_to<T>(GeluTanh::inner(v)));
  }
};
struct Multiply {
  static __device__ float of(float x, float y) { return x * y; }
};
struct Add {
  static __device__ float of(float x, float y) { return x + y; }
};

#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void activation_gelu_tanh_##t(T* x, u64 n) { map_in_place<Gated<GeluTanh, T>>(x, n); }          \
  extern "C" __global__ void activation_gelu_erf_##t(T* x, u64 n) { map_in_place<GeluErf>(x, n); }                      \
  extern "C" __global__ void activation_quick_gelu_##t(T* x, u64 n) { map_in_place<Gated<QuickGelu, T>>(x, n); }        \
  extern "C" __global__ void activation_silu_##t(T* x, u64 n) { map_in_place<Gated<Silu, T>>(x, n); }                   \
  extern "C" __global__ void activation_gelu_tanh_backward_##t(T* d, const T* x, u64 n) {                               \
    zip_in_place<GeluTanhBackward<T>>(d, x, n);                                                                         \
  }                                                                                                                     \
  extern "C" __global__ void activation_multiply_##t(T* x, const T* y, u64 n) { zip_in_place<Multiply>(x, y, n); }      \
  extern "C" __global__ void activation_add_##t(T* x, const T* y, u64 n) { zip_in_place<Add>(x, y, n); }
FOR_EACH_TYPE(KERNELS)
