// Four neighbours of an operand whose storage type is known at run time only: for kernels that meet small tensors of several
// types, where a kernel for each combination would be one of dozens. The type is the same for a whole grid.
#pragma once
#include "common/types.cuh"

// As `type_code` of src/device/gpu has them.
enum Type : u32 { F32 = 0, F16 = 1, BF16 = 2 };

template <typename T> __device__ __forceinline__ float4 load_four(const T* x, u32 count) {
  if (count == 4 && (u64)x % (4 * sizeof(T)) == 0) {
    auto p = *(const Pack<T, 4>*)x;
    return make_float4(widen(p.v[0]), widen(p.v[1]), widen(p.v[2]), widen(p.v[3]));
  }
  float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (count > 0) v.x = widen(x[0]);
  if (count > 1) v.y = widen(x[1]);
  if (count > 2) v.z = widen(x[2]);
  if (count > 3) v.w = widen(x[3]);
  return v;
}

template <typename T> __device__ __forceinline__ void store_four(T* x, u32 count, float4 v) {
  if (count == 4 && (u64)x % (4 * sizeof(T)) == 0) {
    *(Pack<T, 4>*)x = {narrow<T>(v.x), narrow<T>(v.y), narrow<T>(v.z), narrow<T>(v.w)};
    return;
  }
  if (count > 0) x[0] = narrow<T>(v.x);
  if (count > 1) x[1] = narrow<T>(v.y);
  if (count > 2) x[2] = narrow<T>(v.z);
  if (count > 3) x[3] = narrow<T>(v.w);
}

// Elements i to i + count of x, and zeros up to four.
__device__ __forceinline__ float4 load_four(const void* x, u32 type, u64 i, u32 count) {
  if (type == F32) return load_four((const float*)x + i, count);
  if (type == F16) return load_four((const f16*)x + i, count);
  return load_four((const bf16*)x + i, count);
}

__device__ __forceinline__ void store_four(void* x, u32 type, u64 i, u32 count, float4 v) {
  if (type == F32) return store_four((float*)x + i, count, v);
  if (type == F16) return store_four((f16*)x + i, count, v);
  store_four((bf16*)x + i, count, v);
}

// How many of the four elements from `first` on a row of `length` has.
__device__ __forceinline__ u32 four_of(u32 first, u32 length) { return first < length ? min(length - first, 4u) : 0; }

// F::of on each of four.
template <typename F> __device__ __forceinline__ float4 each(F of, float4 a, float4 b) {
  return make_float4(of(a.x, b.x), of(a.y, b.y), of(a.z, b.z), of(a.w, b.w));
}
