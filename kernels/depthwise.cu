// Depthwise convolution of NHWC images, and what follows it: see src/ops/depthwise. A thread has the channels that lie side by
// side in 16 bytes, in neighbouring windows of a line: a window's row stays in registers while those meet it. The CPU's
// chains of fused multiply-adds; what lies outside the image is zero in them.
// hot depthwise_*
#include "common/bend.cuh"
#include "common/rows.cuh"

// Of the image, of its windows, and from line to line of them.
struct Size {
  u32 height, width, channels, down, across, stride;
};

// Neighbouring windows of a thread.
constexpr int TOGETHER = 4;

// K x K windows, S apart in a line, of N channels; `n` threads.
template <int K, int S, int N>
__device__ __forceinline__ void depthwise(float* y, const float* x, const float* w, const float* bias, const Size& p, const Bend& bend, u32 n) {
  constexpr int MET = (TOGETHER - 1) * S + K;
  using P = Pack<float, N>;
  const u32 i = global_thread();
  if (i >= n) return;
  const u32 packs = p.channels / N, groups = (p.across + TOGETHER - 1) / TOGETHER;
  const u32 place = i / packs, channel = (i - place * packs) * N, line = place / groups, first = (place - line * groups) * TOGETHER;
  const u32 image = line / p.down;
  const int top = (int)((line - image * p.down) * p.stride) - K / 2, left = (int)(first * S) - K / 2;
  w += channel;
  float sums[TOGETHER][N] = {};
#pragma unroll 1
  for (int r = 0; r < K; ++r) {
    const bool inside = (u32)(top + r) < p.height;
    const float* row = x + (((u64)image * p.height + top + r) * p.width + left) * p.channels + channel;
    P met[MET];
#pragma unroll
    for (int c = 0; c < MET; ++c) met[c] = fetch<true, N>(row + (long long)c * p.channels, inside && (u32)(left + c) < p.width ? N : 0);
#pragma unroll
    for (int c = 0; c < K; ++c) {
      const P weight = *(const P*)(w + (u64)(r * K + c) * p.channels);
#pragma unroll
      for (int t = 0; t < TOGETHER; ++t)
#pragma unroll
        for (int e = 0; e < N; ++e) sums[t][e] = fmaf(met[t * S + c].v[e], weight.v[e], sums[t][e]);
    }
  }
  const P of_channel = *(const P*)(bias + channel);
#pragma unroll
  for (int t = 0; t < TOGETHER; ++t) {
    P out;
#pragma unroll
    for (int e = 0; e < N; ++e) out.v[e] = bend.of(sums[t][e] + of_channel.v[e]);
    if (first + t < p.across) *(P*)(y + ((u64)line * p.across + first + t) * p.channels + channel) = out;
  }
}

#define DEPTHWISE(K, S, NAME, N)                                                                                        \
  extern "C" __global__ void __launch_bounds__(256)                                                                     \
      depthwise_##K##_##S##_##NAME(float* y, const float* x, const float* w, const float* bias, const Size p,           \
                                   const Bend bend, u32 n) {                                                            \
    depthwise<K, S, N>(y, x, w, bias, p, bend, n);                                                                      \
  }
#define STRIDES(K) DEPTHWISE(K, 1, packed, 4) DEPTHWISE(K, 1, plain, 1) DEPTHWISE(K, 2, packed, 4) DEPTHWISE(K, 2, plain, 1)
STRIDES(3) STRIDES(5)
