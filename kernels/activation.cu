// Pointwise non-linearities, in place: see src/ops/activation.
// hot activation_*
#include "common/activations.cuh"
#include "common/elementwise.cuh"

// Of those that are v sigmoid(inner(v)).
template <typename F, typename T> struct Gated {
  static __device__ float of(float v) { return v * sigmoid_to<T>(F::inner(v)); }
};
// Slopes, of those that are gated with s = sigmoid(inner(v)).
struct QuickGeluSlope : QuickGelu {
  static __device__ float slope(float v, float s) { return s + 1.702f * v * s * (1.0f - s); }
};
struct SiluSlope : Silu {
  static __device__ float slope(float v, float s) { return s + v * s * (1.0f - s); }
};
template <typename F, typename T> struct GatedBackward {
  static __device__ float of(float d, float v) { return d * F::slope(v, sigmoid_to<T>(F::inner(v))); }
};
struct GeluErfBackward {
  static __device__ float of(float d, float v) {
    return d * (0.5f * (1.0f + erf_exact(v * 0.70710678f)) + v * 0.3989423f * exp_exact(-0.5f * v * v));
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
    zip_in_place<GatedBackward<GeluTanh, T>>(d, x, n);                                                                  \
  }                                                                                                                     \
  extern "C" __global__ void activation_gelu_erf_backward_##t(T* d, const T* x, u64 n) {                                \
    zip_in_place<GeluErfBackward>(d, x, n);                                                                             \
  }                                                                                                                     \
  extern "C" __global__ void activation_quick_gelu_backward_##t(T* d, const T* x, u64 n) {                              \
    zip_in_place<GatedBackward<QuickGeluSlope, T>>(d, x, n);                                                            \
  }                                                                                                                     \
  extern "C" __global__ void activation_silu_backward_##t(T* d, const T* x, u64 n) {                                    \
    zip_in_place<GatedBackward<SiluSlope, T>>(d, x, n);                                                                 \
  }                                                                                                                     \
  extern "C" __global__ void activation_multiply_##t(T* x, const T* y, u64 n) { zip_in_place<Multiply>(x, y, n); }      \
  extern "C" __global__ void activation_add_##t(T* x, const T* y, u64 n) { zip_in_place<Add>(x, y, n); }
FOR_EACH_TYPE(KERNELS)
