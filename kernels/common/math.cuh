// Elementary functions: the sequences of src/ops/math.rs, operation for operation, so that f32 results are the CPU's bits; and
// instructions that approximate some, with errors far below what rounding to a half makes of them.
// (Compiled with --fmad=false: what is fused says so.)
#pragma once
#include "common/types.cuh"

// e^x to 1 unit in the last place; infinite above 88.7228, zero below -87.3365.
__device__ __forceinline__ float exp_exact(float x) {
  const float round = 12582912.0f, ln2_hi = 355.0f / 512.0f, ln2_lo = -2.1219444e-4f;
  float shifted = fmaf(x, 1.44269504f, round);
  float n = shifted - round;
  float r = fmaf(-n, ln2_lo, fmaf(-n, ln2_hi, x));
  float p = 1.9875691e-4f;
  p = fmaf(p, r, 1.3981999e-3f);
  p = fmaf(p, r, 8.333452e-3f);
  p = fmaf(p, r, 4.1665796e-2f);
  p = fmaf(p, r, 1.6666665e-1f);
  p = fmaf(p, r, 0.5f);
  p = fmaf(p, r * r, r) + 1.0f;
  float y = __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
  y = x > 88.72283f ? __int_as_float(0x7F800000) : y;
  y = x < -87.33654f ? 0.0f : y;
  return x != x ? x : y;
}

// 2^x and 1/x, approximately.
__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float rcp(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / (1 + e^-x)
__device__ __forceinline__ float sigmoid(float x) { return __fdiv_rn(1.0f, 1.0f + exp_exact(-x)); }
// For a result of type T: in single precision as above, else approximately.
template <typename T> __device__ __forceinline__ float sigmoid_to(float x) {
  if constexpr (sizeof(T) == 4) return sigmoid(x);
  return rcp(1.0f + ex2(x * -1.44269504f));
}

__device__ __forceinline__ float tanh_exact(float x) {
  float a = fabsf(x);
  float large = copysignf(1.0f - __fdiv_rn(2.0f, 1.0f + exp_exact(2.0f * a)), x);
  float s = x * x;
  float p = -5.7049887e-3f;
  p = fmaf(p, s, 2.063909e-2f);
  p = fmaf(p, s, -5.3739714e-2f);
  p = fmaf(p, s, 1.3331441e-1f);
  p = fmaf(p, s, -3.333328e-1f);
  float small = fmaf(p * s, x, x);
  return a < 0.625f ? small : large;
}

// With e^v as `exp` has it.
template <typename Exp> __device__ __forceinline__ float erf_by(float x, Exp exp) {
  float a = fabsf(x), s = x * x;
  float p = fmaf(-1.7285347e-5f, a, 3.8319713e-4f);
  float q = fmaf(-3.8839644e-3f, a, 2.4254622e-2f);
  p = fmaf(p, s, q);
  p = fmaf(p, a, -1.0677788e-1f);
  p = fmaf(p, a, -6.348467e-1f);
  p = fmaf(p, a, -1.2871751e-1f);
  float large = copysignf(1.0f - exp(fmaf(p, a, -a)), x);
  p = -5.967617e-4f;
  p = fmaf(p, s, 4.9911942e-3f);
  p = fmaf(p, s, -2.6768135e-2f);
  p = fmaf(p, s, 1.1281993e-1f);
  p = fmaf(p, s, -3.7612534e-1f);
  p = fmaf(p, s, 1.2837917e-1f);
  float small = fmaf(p, x, x);
  return a > 0.9277344f ? large : small;
}
__device__ __forceinline__ float erf_exact(float x) {
  return erf_by(x, [](float v) { return exp_exact(v); });
}
