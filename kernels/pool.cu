// Means of windows of NHWC images that touch: see src/ops/pool. A thread has N channels of a window, and adds its pixels up
// in the CPU's order.
// hot pool_*
#include "common/types.cuh"

// Of the image, of a window, and windows of an image.
struct Size {
  u32 height, width, channels, down, across, out_height, out_width;
};

template <int N> __device__ __forceinline__ void average(float* y, const float* x, const Size& p, u32 n) {
  using P = Pack<float, N>;
  const u32 i = global_thread();
  if (i >= n) return;
  const u32 packs = p.channels / N, window = i / packs, channel = (i - window * packs) * N;
  const u32 line = window / p.out_width, image = line / p.out_height;
  const u32 row = (line - image * p.out_height) * p.down, column = (window - line * p.out_width) * p.across;
  const float* from = x + (((u64)image * p.height + row) * p.width + column) * p.channels + channel;
  P sum = {};
  for (u32 r = 0; r < p.down; ++r)
    for (u32 c = 0; c < p.across; ++c) {
      const P v = *(const P*)(from + ((u64)r * p.width + c) * p.channels);
#pragma unroll
      for (int e = 0; e < N; ++e) sum.v[e] += v.v[e];
    }
#pragma unroll
  for (int e = 0; e < N; ++e) sum.v[e] = __fdiv_rn(sum.v[e], (float)(p.down * p.across));
  *(P*)(y + (u64)i * N) = sum;
}
extern "C" __global__ void pool_average_packed(float* y, const float* x, const Size p, u32 n) { average<4>(y, x, p, n); }
extern "C" __global__ void pool_average_plain(float* y, const float* x, const Size p, u32 n) { average<1>(y, x, p, n); }
