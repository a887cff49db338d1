// Numbers that are stored in blocks, as src/device/blocks.rs decodes them: the same bits, or these rounded to bf16. A thread
// has four neighbours, whose scale is one; blocks are whole pairs of bytes and begin at one.
#include "common/map.cuh"

// fp8: 4 bits of exponent and 3 of mantissa without infinities, or the upper half of an f16.
struct E4m3 {
  u8 bits;
};
struct E5m2 {
  u8 bits;
};
__device__ __forceinline__ float widen(E4m3 v) {
  u32 exponent = v.bits >> 3 & 15, mantissa = v.bits & 7;
  float magnitude = exponent == 0 ? (float)mantissa * 0.001953125f  // subnormal: multiples of 2^-9
                                  : __uint_as_float((exponent + 120) << 23 | mantissa << 20);
  if ((v.bits & 127) == 127) magnitude = __uint_as_float(0x7FC00000);
  return v.bits & 128 ? -magnitude : magnitude;
}
__device__ __forceinline__ float widen(E5m2 v) { return __half2float(__ushort_as_half((u16)(v.bits << 8))); }

struct Scaled {
  float scale;
  __device__ float of(float v) const { return v * scale; }
};

__device__ __forceinline__ float half_at(const u8* b) { return __half2float(__ushort_as_half(*(const u16*)b)); }

// Four bytes, the first lowest.
__device__ __forceinline__ u32 four(const u8* b) { return ((const u16*)b)[0] | (u32)((const u16*)b)[1] << 16; }

// f of 0, 1, 2 and 3.
template <typename F> __device__ __forceinline__ float4 each(F f) { return make_float4(f(0), f(1), f(2), f(3)); }

// Four bits of each of four bytes of `q`, of element `e` of 32 and those after it: the low ones of all bytes come first.
struct Nibbles {
  u32 bits;
  __device__ __forceinline__ Nibbles(const u8* q, u32 e) : bits(four(q + e % 16) >> (e % 32 < 16 ? 0 : 4)) {}
  __device__ __forceinline__ u32 operator[](int k) const { return bits >> 8 * k & 15; }
};

// What the 4 bits of the IQ4 formats stand for, two times eight bytes.
__device__ __forceinline__ float iq4(u32 q) {
  u64 bytes = q < 8 ? 0xF6EADDCFBFAD9881 : 0x7159453526190D01;
  return (float)(signed char)(bytes >> 8 * (q & 7));
}

// A format has so many elements in so many bytes, and gives elements `e` to `e + 3` of block `b`.
template <u32 E, u32 B> struct Block {
  enum : u32 { ELEMENTS = E, BYTES = B };
};
struct Q4_0 : Block<32, 18> {
  static __device__ float4 at(const u8* b, u32 e) {
    float d = half_at(b);
    Nibbles q(b + 2, e);
    return each([&](int k) { return d * (float)((int)q[k] - 8); });
  }
};
struct Q4_1 : Block<32, 20> {
  static __device__ float4 at(const u8* b, u32 e) {
    float d = half_at(b), m = half_at(b + 2);
    Nibbles q(b + 4, e);
    return each([&](int k) { return d * (float)q[k] + m; });
  }
};
struct Q5_0 : Block<32, 22> {
  static __device__ float4 at(const u8* b, u32 e) {
    float d = half_at(b);
    u32 high = four(b + 2) >> e;
    Nibbles q(b + 6, e);
    return each([&](int k) { return d * (float)((int)(q[k] | (high >> k & 1) << 4) - 16); });
  }
};
struct Q5_1 : Block<32, 24> {
  static __device__ float4 at(const u8* b, u32 e) {
    float d = half_at(b), m = half_at(b + 2);
    u32 high = four(b + 4) >> e;
    Nibbles q(b + 8, e);
    return each([&](int k) { return d * (float)(q[k] | (high >> k & 1) << 4) + m; });
  }
};
struct Q8_0 : Block<32, 34> {
  static __device__ float4 at(const u8* b, u32 e) {
    float d = half_at(b);
    u32 q = four(b + 2 + e);
    return each([&](int k) { return d * (float)(signed char)(q >> 8 * k); });
  }
};
struct Q2_K : Block<256, 84> {
  static __device__ float4 at(const u8* b, u32 e) {
    u32 i = e / 16, scales = b[i], q = four(b + 16 + e / 128 * 32 + e % 32) >> 2 * (i / 2 % 4);
    float scale = half_at(b + 80) * (float)(scales & 15), min = half_at(b + 82) * (float)(scales >> 4);
    return each([&](int k) { return scale * (float)(q >> 8 * k & 3) - min; });
  }
};
struct Q3_K : Block<256, 110> {
  static __device__ float4 at(const u8* b, u32 e) {
    u32 i = e / 16, low = b[96 + i % 8] >> 4 * (i / 8) & 15, high = b[104 + i % 4] >> 2 * (i / 4) & 3;
    float scale = half_at(b + 108) * (float)((int)(low | high << 4) - 32);
    u32 q = four(b + 32 + e / 128 * 32 + e % 32) >> 2 * (i / 2 % 4), mask = four(b + e % 32) >> i / 2;
    return each([&](int k) { return scale * (float)((int)(q >> 8 * k & 3) - (mask >> 8 * k & 1 ? 0 : 4)); });
  }
};

// Scale and minimum of sub-block j of a Q4_K or Q5_K, 6 bits each, times what the block is times.
__device__ __forceinline__ float2 scale_and_min(const u8* b, u32 j) {
  const u8* s = b + 4;
  u32 scale = j < 4 ? s[j] & 63 : s[j + 4] & 15 | s[j - 4] >> 2 & 48;
  u32 min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 2 & 48;
  return make_float2(half_at(b) * (float)scale, half_at(b + 2) * (float)min);
}

struct Q4_K : Block<256, 144> {
  static __device__ float4 at(const u8* b, u32 e) {
    u32 j = e / 32, q = four(b + 16 + j / 2 * 32 + e % 32) >> 4 * (j % 2);
    float2 s = scale_and_min(b, j);
    return each([&](int k) { return s.x * (float)(q >> 8 * k & 15) - s.y; });
  }
};
struct Q5_K : Block<256, 176> {
  static __device__ float4 at(const u8* b, u32 e) {
    u32 j = e / 32, q = four(b + 48 + j / 2 * 32 + e % 32) >> 4 * (j % 2), high = four(b + 16 + e % 32) >> j;
    float2 s = scale_and_min(b, j);
    return each([&](int k) { return s.x * (float)(q >> 8 * k & 15 | (high >> 8 * k & 1) << 4) - s.y; });
  }
};
struct Q6_K : Block<256, 210> {
  static __device__ float4 at(const u8* b, u32 e) {
    // Of the half: which group of 32.
    u32 half = e / 128, group = e / 32 % 4;
    u32 low = four(b + 64 * half + 32 * (group % 2) + e % 32) >> 4 * (group / 2);
    u32 high = four(b + 128 + 32 * half + e % 32) >> 2 * group;
    float scale = half_at(b + 208) * (float)(signed char)b[192 + e / 16];
    return each([&](int k) { return scale * (float)((int)(low >> 8 * k & 15 | (high >> 8 * k & 3) << 4) - 32); });
  }
};
struct IQ4_NL : Block<32, 18> {
  static __device__ float4 at(const u8* b, u32 e) {
    float d = half_at(b);
    Nibbles q(b + 2, e);
    return each([&](int k) { return d * iq4(q[k]); });
  }
};
struct IQ4_XS : Block<256, 136> {
  static __device__ float4 at(const u8* b, u32 e) {
    u32 j = e / 32, low = b[4 + j / 2] >> 4 * (j % 2) & 15, high = *(const u16*)(b + 2) >> 2 * j & 3;
    float scale = half_at(b) * (float)((int)(low | high << 4) - 32);
    Nibbles q(b + 8 + 16 * j, e);
    return each([&](int k) { return scale * iq4(q[k]); });
  }
};

template <typename F, typename T> __device__ __forceinline__ void decode(T* y, const u8* x, float scale, u64 n) {
  u64 i = global_thread() * 4;
  if (i >= n) return;
  float4 v = F::at(x + i / F::ELEMENTS * F::BYTES, i % F::ELEMENTS);
  *(Pack<T, 4>*)(y + i) = {narrow<T>(v.x * scale), narrow<T>(v.y * scale), narrow<T>(v.z * scale), narrow<T>(v.w * scale)};
}

#define BLOCKS_TO(F, T, t)                                                                                              \
  extern "C" __global__ void dequantise_##F##_##t(T* y, const u8* x, float scale, u64 n) { decode<F>(y, x, scale, n); }
#define BLOCKS(F) BLOCKS_TO(F, float, f32) BLOCKS_TO(F, bf16, bf16)
BLOCKS(Q4_0) BLOCKS(Q4_1) BLOCKS(Q5_0) BLOCKS(Q5_1) BLOCKS(Q8_0) BLOCKS(Q2_K) BLOCKS(Q3_K) BLOCKS(Q4_K) BLOCKS(Q5_K)
BLOCKS(Q6_K) BLOCKS(IQ4_NL) BLOCKS(IQ4_XS)

#define FLOATS_TO(F, name, T, t)                                                                                        \
  extern "C" __global__ void dequantise_##name##_##t(T* y, const F* x, float scale, u64 n) { map(y, x, n, Scaled{scale}); }
#define FLOATS(F, name) FLOATS_TO(F, name, float, f32) FLOATS_TO(F, name, bf16, bf16)
FLOATS(E4m3, F8_E4M3) FLOATS(E5m2, F8_E5M2)
