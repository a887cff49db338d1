// Clean latents with noise mixed in: see src/ops/noising.
// hot noising_*
#include "common/map.cuh"

struct Mix {
  float t;
  __device__ float of(float x0, float noise) const { return (1.0f - t) * x0 + t * noise; }
};

// A row of blocks per sample, of `n` numbers.
#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void noising_forward_##t(T* x, const T* x0, const T* noise, const float* times, u64 n) {        \
    u64 first = blockIdx.y * n;                                                                                         \
    zip(x + first, x0 + first, noise + first, n, Mix{times[blockIdx.y]});                                               \
  }
FOR_EACH_TYPE(KERNELS)
