// Rotary position embedding: see src/ops/rope. A thread has N pairs of a position, in all heads of a sample.
// hot rope_*
#include "common/types.cuh"

// Sine and cosine to about 1 unit in the last place of the larger, for |x| up to 100,000: what is over after whole quarter turns
// (a product with a number in three parts), and polynomials (Cephes).
__device__ __forceinline__ void turn(float x, float& sine, float& cosine) {
  const float quarters = rintf(x * 0.636619772f);
  float r = fmaf(quarters, -1.57079601f, x);
  r = fmaf(quarters, -3.13916473e-7f, r);
  r = fmaf(quarters, -5.39030253e-15f, r);
  const float s = r * r;
  float p = fmaf(-1.9515295891e-4f, s, 8.3321608736e-3f);
  p = fmaf(p, s, -1.6666654611e-1f);
  const float of_sine = fmaf(p * s, r, r);
  p = fmaf(2.443315711809948e-5f, s, -1.388731625493765e-3f);
  p = fmaf(p, s, 4.166664568298827e-2f);
  const float of_cosine = fmaf(p * s, s, fmaf(-0.5f, s, 1.0f));
  const int quarter = (int)quarters;
  sine = quarter & 1 ? of_cosine : of_sine;
  cosine = quarter & 1 ? of_sine : of_cosine;
  if (quarter & 2) sine = -sine;
  if ((quarter + 1) & 2) cosine = -cosine;
}

// Blocks: (pairs of all positions, samples). x [b, n, heads * 2 * half]; `speeds` [half].
template <typename T, int N> __device__ __forceinline__ void rope(T* x, const float* speeds, u32 n, u32 heads, u32 half) {
  using P = Pack<T, N>;
  const u32 i = global_thread() * N, position = i / half, pair = i - position * half;
  if (position >= n) return;
  float sine[N], cosine[N];
#pragma unroll
  for (int e = 0; e < N; ++e) turn((float)position * speeds[pair + e], sine[e], cosine[e]);
  x += ((u64)blockIdx.y * n + position) * heads * 2 * half + pair;
#pragma unroll 4
  for (u32 head = 0; head < heads; ++head, x += 2 * half) {
    P a = *(P*)x, b = *(P*)(x + half);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float first = widen(a.v[e]), second = widen(b.v[e]);
      a.v[e] = narrow<T>(first * cosine[e] - second * sine[e]);
      b.v[e] = narrow<T>(second * cosine[e] + first * sine[e]);
    }
    *(P*)x = a;
    *(P*)(x + half) = b;
  }
}

#define ROPE(T, t)                                                                                                      \
  extern "C" __global__ void rope_packed_##t(T* x, const float* speeds, u32 n, u32 heads, u32 half) {                   \
    rope<T, 2>(x, speeds, n, heads, half);                                                                              \
  }                                                                                                                     \
  extern "C" __global__ void rope_plain_##t(T* x, const float* speeds, u32 n, u32 heads, u32 half) {                    \
    rope<T, 1>(x, speeds, n, heads, half);                                                                              \
  }
FOR_EACH_TYPE(ROPE)
