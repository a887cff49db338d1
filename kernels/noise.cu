// Standard normal numbers, a stream per row: see src/ops/noise. A thread makes the four of one block of Philox.
#include "common/noise.cuh"
#include "common/operand.cuh"

// hot noise_*

extern "C" __global__ void __launch_bounds__(256) noise_normal(float* out, const uint4* keys, u64 length) {
  u64 i = global_thread();
  if (4 * i >= length) return;
  u32 count = (u32)min(length - 4 * i, 4ull);
  store_four(out + blockIdx.y * length + 4 * i, count, normals(keys[blockIdx.y], i));
}
