// The sinusoidal embedding of time, operation for operation what src/ops/timestep/cpu.rs does: the same bits.
// hot timestep_*
#include "common/types.cuh"

// The first N of 1/FIRST!, 1/(FIRST + STEP)!, ..., with alternating signs if STEP is 2.
template <int FIRST, int STEP, int N> struct Taylor {
  double c[N];
  __device__ constexpr Taylor() : c() {
    double factorial = 1.0;
    for (int i = 0, n = 0; i < N; ++i) {
      while (n < FIRST + i * STEP) factorial *= ++n;
      c[i] = (STEP == 2 && i % 2 == 1 ? -1.0 : 1.0) / factorial;
    }
  }
};

template <int FIRST, int STEP, int N> __device__ __forceinline__ double taylor(double x) {
  constexpr Taylor<FIRST, STEP, N> series;
  double p = series.c[N - 1];
#pragma unroll
  for (int i = N - 2; i >= 0; --i) p = p * x + series.c[i];
  return p;
}

// e^x for moderate x to within 1e-15 of itself.
__device__ __forceinline__ double exponential(double x) {
  double n = rint(x * 1.4426950408889634);
  double r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10;
  return taylor<0, 1, 14>(r) * __longlong_as_double(((long long)n + 1023) << 52);
}

// One thread per frequency of a time, `half` of them: the cosine, and `half` further on the sine.
extern "C" __global__ void timestep_forward(float* out, const float* times, u32 half, u32 n) {
  u64 at = global_thread();
  if (at >= n) return;
  u32 row = (u32)at / half, i = (u32)at - row * half;
  // The exponent and the angle are rounded, as on the processor.
  float exponent = __fdiv_rn(-9.2103405f * (float)i, (float)half);
  double x = times[row] * (float)exponential(exponent);
  // Up to a few thousand to within 1e-14; products of the first part of pi/2 with small integers are exact.
  double n_quarters = rint(x * 0.6366197723675814);
  double r = (x - n_quarters * 1.5707963267341256) - n_quarters * 6.077100506506192e-11, z = r * r;
  double sine = r * taylor<1, 2, 9>(z), cosine = taylor<0, 2, 10>(z);
  int quarter = (long long)n_quarters & 3;
  double c = quarter & 1 ? sine : cosine, s = quarter & 1 ? cosine : sine;
  out += (u64)row * 2 * half + i;
  out[0] = (float)(quarter == 1 || quarter == 2 ? -c : c);
  out[half] = (float)(quarter >= 2 ? -s : s);
}
