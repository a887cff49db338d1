// Pointwise non-linearities: see src/ops/activation.
#pragma once
#include "common/math.cuh"

struct GeluTanh {
  static constexpr float ROOT_2_OVER_PI = 0.7978846f, CUBIC = 0.044715f;
  static __device__ float of(float v) { return v * sigmoid(2.0f * ROOT_2_OVER_PI * (v + CUBIC * v * v * v)); }
};
struct GeluErf {
  static __device__ float of(float v) { return 0.5f * v * (1.0f + erf_exact(v * 0.70710678f)); }
};
struct QuickGelu {
  static __device__ float of(float v) { return v * sigmoid(1.702f * v); }
};
struct Silu {
  static __device__ float of(float v) { return v * sigmoid(v); }
};
