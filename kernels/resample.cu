// One pass of resampling numbers along one axis: see src/ops/resample, whose launcher makes the weights as the CPU does.
#include "common/types.cuh"

// hot resample_*

struct Three {
  float a, b, c;
  __device__ __forceinline__ float of(u32 i) const { return i == 0 ? a : i == 1 ? b : c; }
};
struct Normal {
  Three mean, std;
};

// x is [outer, from, inner], out [outer, to, inner]. A thread has a number of [to, inner] in some of the outer entries, which are
// channels in turn, each with its mean and deviation. The table has a row per entry of `to`: the first input, how many there
// are, and the bits of their weights.
extern "C" __global__ void __launch_bounds__(256)
    resample_pass(float* out, const float* x, const int* taps, u32 width, u32 outer, u32 from, u32 to, u32 inner, Normal normal) {
  const u32 i = blockIdx.x * 256 + threadIdx.x;
  if (i >= to * inner) return;
  const u32 entry = i / inner;
  taps += entry * width;
  const int first = taps[0], count = taps[1];
  x += (u64)first * inner + (i - entry * inner);
  for (u32 o = blockIdx.y; o < outer; o += gridDim.y) {
    const float* at = x + (u64)o * from * inner;
    float sum = 0.0f;
    for (int k = 0; k < count; ++k) sum = fmaf(at[(u64)k * inner], __int_as_float(taps[2 + k]), sum);
    out[(u64)o * to * inner + i] = (sum - normal.mean.of(o % 3)) / normal.std.of(o % 3);
  }
}
