// Storage types: numbers are kept in f32, f16 or bf16 and computed with in f32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef __half f16;
typedef __nv_bfloat16 bf16;

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(f16 v) { return __half2float(v); }
__device__ __forceinline__ float widen(bf16 v) { return __bfloat162float(v); }

template <typename T> __device__ __forceinline__ T narrow(float v);
template <> __device__ __forceinline__ float narrow<float>(float v) { return v; }
template <> __device__ __forceinline__ f16 narrow<f16>(float v) { return __float2half_rn(v); }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float v) { return __float2bfloat16_rn(v); }

// N neighbouring numbers, as one access of up to 16 bytes.
template <typename T, int N> struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

// The number of this thread in the whole grid, of one dimension.
__device__ __forceinline__ u64 global_thread() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

// `body<T>` as one entry per storage type, `name_f32`, `name_f16`, `name_bf16`: readable names on the host's side.
#define FOR_EACH_TYPE(X) X(float, f32) X(f16, f16) X(bf16, bf16)
