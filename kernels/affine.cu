// y = (x + before) * scale + after, limited to a range, and its gradient: see src/ops/affine.
// hot affine_*
#include "common/map.cuh"

struct Affine {
  float before, scale, after, low, high;
  __device__ float of(float x) const {
    float y = (x + before) * scale + after;
    return y < low ? low : y > high ? high : y;  // not a number stays so
  }
};

struct AffineBackward {
  Affine map;
  __device__ float of(float d, float x) const {
    float y = (x + map.before) * map.scale + map.after;
    return y >= map.low && y <= map.high ? d * map.scale : 0.0f;
  }
};

#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void affine_forward_##t(T* y, const T* x, Affine by, u64 n) { map(y, x, n, by); }                \
  extern "C" __global__ void affine_backward_##t(T* d, const T* x, Affine by, u64 n) { zip(d, d, x, n, AffineBackward{by}); }
FOR_EACH_TYPE(KERNELS)
