// A moving average, in place: see src/ops/lerp.
// hot lerp_*
#include "common/map.cuh"

struct Lerp {
  float decay;
  __device__ float of(float average, float x) const { return decay * average + (1.0f - decay) * x; }
};

#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void lerp_forward_##t(T* average, const T* x, const float* decay, u64 n) {                      \
    zip(average, average, x, n, Lerp{*decay});                                                                          \
  }
FOR_EACH_TYPE(KERNELS)
