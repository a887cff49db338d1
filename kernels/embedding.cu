// Rows of a table, by index, widened: see src/ops/embedding.
// hot embedding_*
#include "common/elementwise.cuh"

// Four numbers a thread; `per_row` threads a row, `n` in all.
template <typename T>
__device__ __forceinline__ void forward(float* y, const u32* ids, const T* table, u32 d, u32 per_row, u32 n) {
  u64 at = global_thread();
  if (at >= n) return;
  u32 i = (u32)at / per_row, column = 4 * ((u32)at - i * per_row);
  y += (u64)i * d + column, table += (u64)ids[i] * d + column;
  if (d % 4 == 0 && are_aligned(y - column) && ((u64)table & (4 * sizeof(T) - 1)) == 0) {
    auto a = *(const Pack<T, 4>*)table;
    *(float4*)y = make_float4(widen(a.v[0]), widen(a.v[1]), widen(a.v[2]), widen(a.v[3]));
  } else {
    for (u32 k = 0; k < min(4, d - column); ++k) y[k] = widen(table[k]);
  }
}

// A row of blocks per column of the table, which is narrow and small.
template <typename T> __device__ __forceinline__ void by_column(float* y, const u32* ids, const T* table, u32 d, u32 n) {
  u64 i = global_thread();
  if (i < n) y[(u64)blockIdx.y * n + i] = widen(table[(u64)ids[i] * d + blockIdx.y]);
}

#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void embedding_forward_##t(float* y, const u32* ids, const T* table, u32 d, u32 per_row, u32 n) { \
    forward(y, ids, table, d, per_row, n);                                                                              \
  }                                                                                                                     \
  extern "C" __global__ void embedding_by_column_##t(float* y, const u32* ids, const T* table, u32 d, u32 n) {          \
    by_column(y, ids, table, d, n);                                                                                     \
  }
FOR_EACH_TYPE(KERNELS)
