// Sums in f64 in the order of `ordered_sum` of src/ops/cpu: a thread adds four neighbours, the lanes of a warp are added by
// halves, the warps of a block of 256 one after another. The host adds the chunks of 1024 that blocks have.
#pragma once
#include "common/types.cuh"

// The sum of the products of four neighbours; products of f32 are exact in f64.
__device__ __forceinline__ double dot_four(float4 a, float4 b) {
  double sum = 0.0;
  sum = sum + (double)a.x * (double)b.x;
  sum = sum + (double)a.y * (double)b.y;
  sum = sum + (double)a.z * (double)b.z;
  sum = sum + (double)a.w * (double)b.w;
  return sum;
}

// For sums that a block has one after another: each thread gives its part of sum k of N. `finish` follows the last.
template <int N> struct BlockSums {
  double (&warps)[8][N];

  __device__ __forceinline__ void give(int k, double sum) {
#pragma unroll
    for (int half = 16; half; half >>= 1) sum = sum + __shfl_xor_sync(0xFFFFFFFF, sum, half);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32][k] = sum;
  }

  __device__ __forceinline__ void finish(double* out) {
    __syncthreads();
    int k = threadIdx.x;
    if (k >= N) return;
    double sum = 0.0;
#pragma unroll
    for (int warp = 0; warp < 8; ++warp) sum = sum + warps[warp][k];
    out[k] = sum;
  }
};
