// Decoded images to bytes: see src/ops/quantise.
// hot quantise_*
#include "common/map.cuh"

// Rounds half to even; what is not a number is 0.
template <> __device__ __forceinline__ u8 narrow<u8>(float v) { return (u8)__float2uint_rn(v); }

struct Quantise {
  static __device__ float of(float v) {
    float unit = v * 0.5f + 0.5f;
    return (unit < 0.0f ? 0.0f : unit > 1.0f ? 1.0f : unit) * 255.0f;
  }
};

#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void quantise_forward_##t(u8* out, const T* images, u64 n) { map<Quantise>(out, images, n); }
FOR_EACH_TYPE(KERNELS)
