// The non-linearities of mobile networks: see src/ops/pointwise. The CPU's operations in its order.
#pragma once
#include "common/math.cuh"

enum Curve : u32 { LINE, RELU, HARD_SWISH, HARD_SIGMOID, SILU, SIGMOID };

// scale curve(v) + shift, with a sixth of the scale for HARD_SWISH.
struct Bend {
  u32 curve;
  float slope, scale, shift;

  // What is not a number stays so.
  static __device__ __forceinline__ float clamp(float v, float most) { return v < 0.0f ? 0.0f : v > most ? most : v; }
  __device__ __forceinline__ float of(float v) const {
    switch (curve) {
    case RELU: v = fmaxf(v, 0.0f); break;
    case HARD_SWISH: v *= clamp(v + 3.0f, 6.0f); break;
    case HARD_SIGMOID: v = clamp(fmaf(v, slope, 0.5f), 1.0f); break;
    case SILU: v *= sigmoid(v); break;
    case SIGMOID: v = sigmoid(v); break;
    }
    return fmaf(v, scale, shift);
  }
};
