// One step of any sampler: see src/ops/step. A block has 1024 elements of one sample, a thread four of them; every operation
// is rounded on its own, in the order of the formula.
#include "common/noise.cuh"
#include "common/operand.cuh"
#include "common/ordered_sum.cuh"

// hot step_*

// The factors of the formula. They differ from step to step and are read from memory, so that the launches do not.
struct Numbers {
  float guidance, a, b, history[2], s;
};

// What is given to both kernels; a null `uncond` or `m` is not part of the formula.
struct Inputs {
  const void *x, *velocity, *uncond, *m[2];
  const Numbers* numbers;
  u32 x_type, velocity_type, length, pad;
};
static_assert(sizeof(Inputs) == 64);

__device__ __forceinline__ float4 mean_of(const Inputs& in, const Numbers& f, u64 at, u32 count) {
  float4 v = load_four(in.velocity, in.velocity_type, at, count);
  if (in.uncond) {
    float4 u = load_four(in.uncond, in.velocity_type, at, count);
    v = each([g = f.guidance](float u, float c) { return u + g * (c - u); }, u, v);
  }
  float4 x = load_four(in.x, in.x_type, at, count);
  float4 mean = each([a = f.a, b = f.b](float x, float v) { return a * x + b * v; }, x, v);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (in.m[k]) {
      float4 m = load_four(in.m[k], in.x_type, at, count);
      mean = each([h = f.history[k]](float mean, float m) { return mean + h * m; }, mean, m);
    }
  }
  return mean;
}

// `keys` is null for a step without noise, which is the mean itself (adding zero would lose the sign of a zero).
extern "C" __global__ void __launch_bounds__(256)
    step_forward(void* next, const __grid_constant__ Inputs in, const uint4* keys) {
  u32 first = 4 * (blockIdx.x * 256 + threadIdx.x), count = four_of(first, in.length);
  if (count == 0) return;
  u64 at = (u64)blockIdx.y * in.length + first;
  const Numbers f = *in.numbers;
  float4 x = mean_of(in, f, at, count);
  if (keys) x = each([s = f.s](float x, float e) { return x + s * e; }, x, normals(keys[blockIdx.y], first / 4));
  store_four(next, in.x_type, at, count, x);
}

// sums[sample][chunk]: the squares of next - mean.
extern "C" __global__ void __launch_bounds__(256)
    step_residuals(double* sums, const void* next, const __grid_constant__ Inputs in) {
  __shared__ double warps[8][1];
  BlockSums<1> block{warps};
  u32 first = 4 * (blockIdx.x * 256 + threadIdx.x), count = four_of(first, in.length);
  u64 at = (u64)blockIdx.y * in.length + first;
  double sum = 0.0;
  if (count > 0) {
    float4 x = load_four(next, in.x_type, at, count);
    float4 d = each([](float x, float mean) { return x - mean; }, x, mean_of(in, *in.numbers, at, count));
    sum = dot_four(d, d);
  }
  block.give(0, sum);
  block.finish(sums + (u64)blockIdx.y * gridDim.x + blockIdx.x);
}
