// The mean of every channel of NHWC images, and channels times gates: see src/ops/squeeze. Chunks of an image's pixels are
// added up by blocks, and then their sums: a chunk's size does not depend on how many images there are.
// hot squeeze_*
#include "common/rows.cuh"

constexpr int THREADS = 256, COLUMNS = 32, ROWS = THREADS / COLUMNS;

// The sum of rows first, first + ROWS, .. < end of a channel, those of the block in order; the first row's threads have it.
__device__ __forceinline__ float column_sum(const float* x, u32 first, u32 end, u32 stride, bool there) {
  __shared__ float sums[ROWS][COLUMNS];
  const u32 row = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
  float sum = 0.0f;
  if (there)
#pragma unroll 8
    for (u32 i = first + row; i < end; i += ROWS) sum += x[(u64)i * stride];
  sums[row][column] = sum;
  __syncthreads();
  sum = 0.0f;
#pragma unroll
  for (int r = 0; r < ROWS; ++r) sum += sums[r][column];
  return sum;
}

// Blocks: (tiles of channels, chunks, images). x [b, pixels, channels] to sums [b, chunks, channels], over `divisor`.
extern "C" __global__ void __launch_bounds__(THREADS)
    squeeze_sums_f32(float* y, const float* x, u32 pixels, u32 channels, u32 chunk, float divisor) {
  const u32 channel = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS, first = blockIdx.y * chunk;
  const bool there = channel < channels;
  const float* image = x + (u64)blockIdx.z * pixels * channels + channel;
  const float sum = column_sum(image, first, min(first + chunk, pixels), channels, there);
  if (there && threadIdx.x < COLUMNS) y[((u64)blockIdx.z * gridDim.y + blockIdx.y) * channels + channel] = __fdiv_rn(sum, divisor);
}

// x [b, pixels, channels] times gates [b, channels], N numbers a thread; `image` are the numbers of an image.
template <int N> __device__ __forceinline__ void excite(float* x, const float* gates, u32 channels, u64 image, u64 n) {
  using P = Pack<float, N>;
  const u64 i = global_thread() * N;
  if (i >= n) return;
  P v = *(P*)(x + i);
  const P gate = *(const P*)(gates + i / image * channels + i % channels);
#pragma unroll
  for (int e = 0; e < N; ++e) v.v[e] *= gate.v[e];
  *(P*)(x + i) = v;
}
extern "C" __global__ void squeeze_excite_packed(float* x, const float* gates, u32 channels, u64 image, u64 n) {
  excite<4>(x, gates, channels, image, n);
}
extern "C" __global__ void squeeze_excite_plain(float* x, const float* gates, u32 channels, u64 image, u64 n) {
  excite<1>(x, gates, channels, image, n);
}
