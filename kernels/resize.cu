// One pass of resampling bytes along one axis: see src/ops/resize, whose launcher makes the weights as the CPU does.
#include "common/types.cuh"

// hot resize_*

constexpr int PRECISION = 22;

// x is [outer, from, inner], out [outer, to, inner]. A thread has a byte of [to, inner] in some of the outer entries. The
// table has a row per entry of `to`: the first input, how many there are, and their weights.
extern "C" __global__ void __launch_bounds__(256)
    resize_pass(u8* out, const u8* x, const int* taps, u32 width, u32 outer, u32 from, u32 to, u32 inner) {
  const u32 i = blockIdx.x * 256 + threadIdx.x;
  if (i >= to * inner) return;
  const u32 entry = i / inner;
  taps += entry * width;
  const int first = taps[0], count = taps[1];
  x += (u64)first * inner + (i - entry * inner);
  for (u32 o = blockIdx.y; o < outer; o += gridDim.y) {
    const u8* at = x + (u64)o * from * inner;
    int sum = 1 << (PRECISION - 1);
    for (int k = 0; k < count; ++k) sum += at[k * inner] * taps[2 + k];
    out[(u64)o * to * inner + i] = (u8)min(max(sum >> PRECISION, 0), 255);
  }
}
