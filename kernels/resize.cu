// One pass of resampling bytes along one axis, and numbers between four neighbours: see src/ops/resize, whose launcher makes the
// weights of the former as the CPU does.
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

// Of the images and of the result, and pixels of those for one of this.
struct Bilinear {
  u32 height, width, out_height, out_width, channels;
  float down, across;
};

// The two pixels that a place along an axis lies between, and the share of the second.
struct Between {
  u32 first, second;
  float share;
  __device__ __forceinline__ Between(u32 i, float scale, u32 count) {
    const float at = fmaxf(scale * ((float)i + 0.5f) - 0.5f, 0.0f);
    first = min((u32)at, count - 1);
    second = min(first + 1, count - 1);
    share = at - (float)first;
  }
};

// A thread has N channels of a pixel of the result.
template <int N> __device__ __forceinline__ void bilinear(float* out, const float* x, const Bilinear& p, u32 n) {
  using P = Pack<float, N>;
  const u32 i = global_thread();
  if (i >= n) return;
  const u32 packs = p.channels / N, pixel = i / packs, channel = (i - pixel * packs) * N;
  const u32 line = pixel / p.out_width, image = line / p.out_height;
  const Between down(line - image * p.out_height, p.down, p.height), across(pixel - line * p.out_width, p.across, p.width);
  x += (u64)image * p.height * p.width * p.channels + channel;
  auto at = [&](u32 row, u32 column) { return *(const P*)(x + ((u64)row * p.width + column) * p.channels); };
  const P a = at(down.first, across.first), b = at(down.first, across.second);
  const P c = at(down.second, across.first), d = at(down.second, across.second);
  P v;
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const float upper = (1.0f - across.share) * a.v[e] + across.share * b.v[e];
    const float lower = (1.0f - across.share) * c.v[e] + across.share * d.v[e];
    v.v[e] = (1.0f - down.share) * upper + down.share * lower;
  }
  *(P*)(out + (u64)i * N) = v;
}
extern "C" __global__ void resize_bilinear_packed(float* out, const float* x, const Bilinear p, u32 n) { bilinear<4>(out, x, p, n); }
extern "C" __global__ void resize_bilinear_plain(float* out, const float* x, const Bilinear p, u32 n) { bilinear<1>(out, x, p, n); }
