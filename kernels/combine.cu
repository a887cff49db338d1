// Linear combinations of differences: see src/ops/combine. A thread has four elements of one row.
#include "common/difference.cuh"

// hot combine_*

// coefficients[row][difference] are already divided by the length.
extern "C" __global__ void __launch_bounds__(256)
    combine_forward(void* out, u32 type, const Term* terms, const float* weights, const double* coefficients, u32 differences,
                    u32 length) {
  u32 first = 4 * (blockIdx.x * 256 + threadIdx.x), count = four_of(first, length);
  if (count == 0) return;
  u64 at = (u64)blockIdx.y * length + first;
  double x = 0.0, y = 0.0, z = 0.0, w = 0.0;
#pragma unroll 1
  for (u32 i = 0; i < differences; ++i) {
    u32 k = differences * blockIdx.y + i;
    float4 d = difference(terms + MOST * i, weights + MOST * k, at, count);
    double c = coefficients[k];
    x = x + c * (double)d.x;
    y = y + c * (double)d.y;
    z = z + c * (double)d.z;
    w = w + c * (double)d.w;
  }
  store_four(out, type, at, count, make_float4((float)x, (float)y, (float)z, (float)w));
}
