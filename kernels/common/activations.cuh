// Pointwise non-linearities: see src/ops/activation.
#pragma once
#include "common/math.cuh"

// Those that are v sigmoid(inner(v)).
struct GeluTanh {
  static constexpr float ROOT_2_OVER_PI = 0.7978846f, CUBIC = 0.044715f;
  static __device__ float inner(float v) { return 2.0f * ROOT_2_OVER_PI * (v + CUBIC * v * v * v); }
  static __device__ float of(float v) { return v * sigmoid(inner(v)); }
  static __device__ float slope(float v) { return slope(v, sigmoid(inner(v))); }
  // With s = sigmoid(inner(v)).
  static __device__ float slope(float v, float s) {
    return s + v * s * (1.0f - s) * 2.0f * ROOT_2_OVER_PI * (1.0f + 3.0f * CUBIC * v * v);
  }
};
struct QuickGelu {
  static __device__ float inner(float v) { return 1.702f * v; }
  static __device__ float of(float v) { return v * sigmoid(inner(v)); }
};
struct Silu {
  static __device__ float inner(float v) { return v; }
  static __device__ float of(float v) { return v * sigmoid(v); }
};
struct GeluErf {
  static __device__ float of(float v) { return 0.5f * v * (1.0f + erf_exact(v * 0.70710678f)); }
};
