// NHWC images enlarged by whole factors: see src/ops/enlarge. A thread has N channels of a pixel of the result.
// hot enlarge_*
#include "common/types.cuh"

// Of the image that is enlarged, and channels of the result and which of them is the first that is meant.
struct Size {
  u32 height, width, channels, factor, all, first;
};

// Where the numbers of thread i come from and where they go.
template <int N> struct Place {
  u64 from, to;
  __device__ __forceinline__ Place(const Size& p, u32 i) {
    const u32 packs = p.channels / N, pixel = i / packs, channel = (i - pixel * packs) * N, width = p.width * p.factor;
    const u32 line = pixel / width, column = pixel - line * width;
    // An image is a multiple of `factor` lines high, so that lines of all images are counted as one.
    from = ((u64)(line / p.factor) * p.width + column / p.factor) * p.channels + channel;
    to = (u64)pixel * p.all + p.first + channel;
  }
};

template <int N, bool ADD> __device__ __forceinline__ void enlarge(float* y, const float* x, const Size& p, u32 n) {
  using P = Pack<float, N>;
  const u32 i = global_thread();
  if (i >= n) return;
  const Place<N> place(p, i);
  P v = *(const P*)(x + place.from);
  if (ADD) {
    const P a = *(const P*)(y + place.to);
#pragma unroll
    for (int e = 0; e < N; ++e) v.v[e] += a.v[e];
  }
  *(P*)(y + place.to) = v;
}

// [b, h, w, (2, 2, c)] to [b, 2h, 2w, c]: half of the numbers of a pixel go to an even line, the others to the odd one below.
template <int N> __device__ __forceinline__ void unfold(float* y, const float* x, u32 channels, u32 width, u32 n) {
  using P = Pack<float, N>;
  const u32 i = global_thread();
  if (i >= n) return;
  const u32 packs = 2 * channels / N, pixel = i / packs, half = (i - pixel * packs) * N, line = pixel / width;
  const u64 from = (((u64)(line / 2) * width + pixel - line * width) * 2 + line % 2) * 2 * channels + half;
  *(P*)(y + (u64)i * N) = *(const P*)(x + from);
}

#define ENLARGE(NAME, N)                                                                                                \
  extern "C" __global__ void enlarge_add_##NAME(float* y, const float* x, const Size p, u32 n) { enlarge<N, true>(y, x, p, n); }    \
  extern "C" __global__ void enlarge_place_##NAME(float* y, const float* x, const Size p, u32 n) { enlarge<N, false>(y, x, p, n); } \
  extern "C" __global__ void enlarge_unfold_##NAME(float* y, const float* x, u32 channels, u32 width, u32 n) {          \
    unfold<N>(y, x, channels, width, n);                                                                                \
  }
ENLARGE(packed, 4) ENLARGE(plain, 1)
