// Standard normal numbers, the bits of src/ops/noise/cpu.rs: integers, and additions, multiplications and roots that are each
// rounded once. Nothing here may be contracted (--fmad=false, which writes .rn; a test reads the PTX).
#pragma once
#include "common/types.cuh"

// One block of Philox4x32 with ten rounds.
__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    u32 a = __umulhi(counter.x, 0xD2511F53u), b = __umulhi(counter.z, 0xCD9E8D57u);
    counter = make_uint4(b ^ counter.y ^ key.x, counter.z * 0xCD9E8D57u, a ^ counter.w ^ key.y, counter.x * 0xD2511F53u);
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return counter;
}

// p(x) for coefficients as bits, lowest power first.
template <int N> __device__ __forceinline__ float horner(const u32 (&coefficients)[N], float x) {
  float p = __uint_as_float(coefficients[N - 1]);
#pragma unroll
  for (int k = N - 2; k >= 0; --k) p = p * x + __uint_as_float(coefficients[k]);
  return p;
}

// -2 ln(w / 2^24) for 0 < w < 2^24.
__device__ __forceinline__ float minus_two_ln(u32 w) {
  constexpr u32 LN[] = {0x3EAAAAAA, 0xBE800114, 0x3E4CD004, 0xBE2A3922, 0x3E116D11, 0xBE06C2A9, 0x3E02ADA3, 0xBD9C5A66};
  u32 bits = __float_as_uint((float)w * 5.9604645e-8f);
  int e = (int)(bits - 0x3F3504F3u) >> 23;
  float f = __uint_as_float(bits - ((u32)e << 23)) - 1.0f, s = f * f, k = (float)e;
  float y = f * (s * horner(LN, f));
  y = y + k * __uint_as_float(0xB95E8083u);
  y = y - 0.5f * s;
  y = y + f;
  return -2.0f * (y + k * 0.693359375f);
}

// Cosine and sine of 2 pi w / 2^24.
__device__ __forceinline__ float2 cos_sin(u32 w) {
  constexpr u32 SIN[] = {0x3FC90FDB, 0xBF255DDD, 0x3DA32F63, 0xBB96CDDC};
  constexpr u32 COS[] = {0xBF9DE9E6, 0x3E81E0EF, 0xBCAAE2F0, 0x3A6CEABE};
  u32 q = (w + (1u << 21)) >> 22;
  float rho = (float)(int)(w - (q << 22)) * 2.3841858e-7f, z = rho * rho;
  float s = rho * horner(SIN, z), c = 1.0f + z * horner(COS, z);
  u32 cosine = __float_as_uint(q & 1 ? s : c) ^ ((q + 1) >> 1 & 1) << 31;
  u32 sine = __float_as_uint(q & 1 ? c : s) ^ (q >> 1 & 1) << 31;
  return make_float2(__uint_as_float(cosine), __uint_as_float(sine));
}

// Elements 4i to 4i + 3 of the stream with these words (Box and Muller 1958).
__device__ __forceinline__ float4 normals(uint4 words, u64 i) {
  uint4 x = philox(make_uint4((u32)i, (u32)(i >> 32), words.z, words.w), make_uint2(words.x, words.y));
  float r = __fsqrt_rn(minus_two_ln(x.x >> 8 | 1)), s = __fsqrt_rn(minus_two_ln(x.z >> 8 | 1));
  float2 a = cos_sin(x.y >> 8 | 1), b = cos_sin(x.w >> 8 | 1);
  return make_float4(r * a.x, r * a.y, s * b.x, s * b.y);
}
