// Group normalisation of NHWC images, and SiLU; and the gradient to the image: see src/ops/group_norm. Blocks take chunks of an
// image's pixels; a thread stays with the channels that lie side by side in 16 bytes. A chunk's size does not depend on how many
// images there are.
// hot group_norm_*
#include "common/math.cuh"
#include "common/rows.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
// Of a chunk, for each thread.
constexpr int PIXELS = 16, BATCH = 4;

// `columns` threads (a power of two, at most 32) have channels of the same pixel. The grid: chunks, channels, images.
template <typename T, bool PACKED> struct Chunk {
  static constexpr int N = 16 / sizeof(T);
  int columns, rows, channels, channel;
  u32 first, row, pixels;
  u64 image;

  __device__ __forceinline__ Chunk(u32 pixels, int channels, int columns)
      : columns(columns), channels(channels), pixels(pixels) {
    u32 shift = __popc(columns - 1);
    rows = THREADS >> shift;
    row = threadIdx.x >> shift;
    channel = ((blockIdx.y << shift) + (threadIdx.x & (columns - 1))) * N;
    first = blockIdx.x * rows * PIXELS;
    image = (u64)blockIdx.z * pixels;
  }
  // The pixel of the chunk's pass `i` over its rows.
  __device__ __forceinline__ u32 pixel(int i) const { return first + i * rows + row; }
  __device__ __forceinline__ u64 offset(u32 pixel) const { return (image + pixel) * channels + channel; }
  __device__ __forceinline__ int count(u32 pixel) const { return pixel < pixels ? channels - channel : 0; }
  // The pixels of BATCH passes, so that as many loads are under way together.
  __device__ __forceinline__ void fetch_batch(Pack<T, N> (&a)[BATCH], const T* x, int i) const {
#pragma unroll
    for (int j = 0; j < BATCH; ++j) a[j] = fetch<PACKED, N>(x + offset(pixel(i + j)), count(pixel(i + j)));
  }
};

// Two sums of every channel of a block over its pixels, to out [2, channel], of each thread's own.
template <int N> __device__ __forceinline__ void sum_pixels(float* out, float (&sums)[2 * N], int channels, int columns) {
  __shared__ alignas(16) float of_warp[WARPS][2][32 * N];
  for (int step = 16; step >= columns; step >>= 1)
#pragma unroll
    for (int k = 0; k < 2 * N; ++k) sums[k] += __shfl_xor_sync(0xFFFFFFFF, sums[k], step);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane < columns)
#pragma unroll
    for (int k = 0; k < 2 * N; k += 4)
      *(Pack<float, 4>*)&of_warp[warp][k / N][lane * N + k % N] = {sums[k], sums[k + 1], sums[k + 2], sums[k + 3]};
  __syncthreads();
  int channel = blockIdx.y * columns * N + threadIdx.x;
  if (threadIdx.x < columns * N && channel < channels)
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      float total = of_warp[0][s][threadIdx.x];
#pragma unroll
      for (int w = 1; w < WARPS; ++w) total += of_warp[w][s][threadIdx.x];
      out[s * channels + channel] = total;
    }
}

// Three numbers of a channel in a chunk, [image, chunk, 3, channel]: the first pixel, and the sums of the differences from
// it and of their squares. Near the mean as it is, single precision loses nothing that matters.
template <bool PACKED, typename T>
__device__ __forceinline__ void partial(float* out, const T* x, u32 pixels, int channels, int columns) {
  Chunk<T, PACKED> at(pixels, channels, columns);
  constexpr int N = at.N;
  float pivot[N], sums[2 * N];
  load<PACKED>(pivot, x + at.offset(at.first), channels - at.channel);
#pragma unroll
  for (int k = 0; k < 2 * N; ++k) sums[k] = 0.0f;
#pragma unroll 1
  for (int i = 0; i < PIXELS; i += BATCH) {
    Pack<T, N> a[BATCH];
    at.fetch_batch(a, x, i);
#pragma unroll
    for (int j = 0; j < BATCH; ++j)
#pragma unroll
      for (int k = 0; k < N; ++k) {
        float apart = at.pixel(i + j) < pixels ? widen(a[j].v[k]) - pivot[k] : 0.0f;
        sums[k] += apart;
        sums[N + k] = fmaf(apart, apart, sums[N + k]);
      }
  }
  out += ((u64)blockIdx.z * gridDim.x + blockIdx.x) * 3 * channels;
  if (at.row == 0)
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (at.channel + k < channels) out[at.channel + k] = pivot[k];
  sum_pixels<N>(out + channels, sums, channels, columns);
}

// What is done to every channel of an image, [image, 3, channel]: (x - shift) scale + bias. A block has a group of an image.
// The reciprocal deviation of a group, and what its mean has lost, go to `moments` [image, group, 2], if that is there.
extern "C" __global__ void __launch_bounds__(512)
    group_norm_maps(float* maps, const float* partial, const float* weight, const float* bias, u32 pixels, u32 chunks, u32 chunk,
                    int channels, float eps, float* moments) {
  int size = channels / gridDim.x, first = blockIdx.x * size;
  partial += (u64)blockIdx.y * chunks * 3 * channels + first;
  // About a number near all of them, in double precision.
  double near = partial[0], sums[2] = {0.0, 0.0};
  for (u32 i = threadIdx.x; i < chunks * size; i += blockDim.x) {
    u32 c = i / size;
    const float* at = partial + (u64)c * 3 * channels + i % size;
    double n = min(chunk, pixels - c * chunk), apart = at[0] - near, sum = at[channels];
    sums[0] += n * apart + sum;
    sums[1] += at[2 * channels] + apart * (2.0 * sum + n * apart);
  }
  block_sums<0>(sums, blockDim.x);
  double n = (double)pixels * size, offset = sums[0] / n, mean = near + offset;
  float shift = mean;
  double lost = mean - shift, deviation = sqrt(fmax(sums[1] / n - offset * offset, 0.0) + eps);
  if (moments && threadIdx.x == 0) {
    moments += 2 * (blockIdx.y * gridDim.x + blockIdx.x);
    moments[0] = 1.0 / deviation;
    moments[1] = lost;
  }
  maps += (u64)blockIdx.y * 3 * channels;
  for (int c = first + threadIdx.x; c < first + size; c += blockDim.x) {
    double scale = weight[c] / deviation;
    maps[c] = shift;
    maps[channels + c] = scale;
    maps[2 * channels + c] = bias[c] - lost * scale;
  }
}

// x sigmoid(x): in single precision with the CPU's bits; else by instructions whose errors are far below what rounding to T
// makes of them.
template <typename T> __device__ __forceinline__ float silu_to(float x) {
  if constexpr (sizeof(T) == 4) return x / (1.0f + exp_exact(-x));
  return x * sigmoid_to<T>(x);
}

template <bool PACKED, typename T>
__device__ __forceinline__ void apply(T* y, const T* x, const float* maps, u32 pixels, int channels, int columns, int silu) {
  Chunk<T, PACKED> at(pixels, channels, columns);
  constexpr int N = at.N;
  float shift[N], scale[N], bias[N];
  maps += (u64)blockIdx.z * 3 * channels + at.channel;
  load<PACKED>(shift, maps, channels - at.channel);
  load<PACKED>(scale, maps + channels, channels - at.channel);
  load<PACKED>(bias, maps + 2 * channels, channels - at.channel);
#pragma unroll 1
  for (int i = 0; i < PIXELS; i += BATCH) {
    Pack<T, N> a[BATCH];
    at.fetch_batch(a, x, i);
#pragma unroll
    for (int j = 0; j < BATCH; ++j) {
      u32 pixel = at.pixel(i + j);
      float v[N];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        v[k] = fmaf(widen(a[j].v[k]) - shift[k], scale[k], bias[k]);
        if (silu) v[k] = silu_to<T>(v[k]);
      }
      store<PACKED>(y + at.offset(pixel), v, at.count(pixel));
    }
  }
}

// The gradient to (x - shift) scale + bias, if d is that to what `forward` makes of it.
template <typename T>
__device__ __forceinline__ float through(float d, float apart, float scale, float bias, int silu) {
  if (!silu) return d;
  float v = fmaf(apart, scale, bias), s = sigmoid_to<T>(v);
  return d * (s + v * s * (1.0f - s));
}

// For every channel of a chunk the sums of d and of d (x - shift), [image, chunk, 2, channel].
template <bool PACKED, typename T>
__device__ __forceinline__ void gradient_partial(float* out, const T* dy, const T* x, const float* maps, u32 pixels, int channels,
                                                 int columns, int silu) {
  Chunk<T, PACKED> at(pixels, channels, columns);
  constexpr int N = at.N;
  float shift[N], scale[N], bias[N], sums[2 * N];
  maps += (u64)blockIdx.z * 3 * channels + at.channel;
  load<PACKED>(shift, maps, channels - at.channel);
  load<PACKED>(scale, maps + channels, channels - at.channel);
  load<PACKED>(bias, maps + 2 * channels, channels - at.channel);
#pragma unroll
  for (int k = 0; k < 2 * N; ++k) sums[k] = 0.0f;
#pragma unroll 1
  for (int i = 0; i < PIXELS; ++i) {
    u32 pixel = at.pixel(i);
    float d[N], v[N];
    load<PACKED>(d, dy + at.offset(pixel), at.count(pixel));
    load<PACKED>(v, x + at.offset(pixel), at.count(pixel));
#pragma unroll
    for (int k = 0; k < N; ++k) {
      float apart = v[k] - shift[k], g = through<T>(d[k], apart, scale[k], bias[k], silu);
      sums[k] += g;
      sums[N + k] = fmaf(g, apart, sums[N + k]);
    }
  }
  sum_pixels<N>(out + ((u64)blockIdx.z * gridDim.x + blockIdx.x) * 2 * channels, sums, channels, columns);
}

// The factor on x - shift and the offset of every channel's gradient, [image, 2, channel]. A block has a group of an image.
extern "C" __global__ void __launch_bounds__(512)
    group_norm_corrections(float* corrections, const float* partial, const float* weight, const float* moments, u32 pixels,
                           u32 chunks, int channels) {
  int size = channels / gridDim.x, first = blockIdx.x * size;
  partial += (u64)blockIdx.y * chunks * 2 * channels + first;
  double sums[2] = {0.0, 0.0};
  for (u32 i = threadIdx.x; i < chunks * size; i += blockDim.x) {
    u32 c = i / size;
    const float* at = partial + (u64)c * 2 * channels + i % size;
    double w = weight[first + i % size];
    sums[0] += w * at[0];
    sums[1] += w * at[channels];
  }
  block_sums<0>(sums, blockDim.x);
  moments += 2 * (blockIdx.y * gridDim.x + blockIdx.x);
  double n = (double)pixels * size, rstd = moments[0], lost = moments[1];
  double mean = sums[0] / n, normalised = rstd * (sums[1] / n - lost * mean);
  corrections += (u64)blockIdx.y * 2 * channels;
  for (int c = first + threadIdx.x; c < first + size; c += blockDim.x) {
    corrections[c] = -rstd * rstd * normalised;
    corrections[channels + c] = rstd * (rstd * lost * normalised - mean);
  }
}

template <bool PACKED, typename T>
__device__ __forceinline__ void add_gradient(T* dx, const T* dy, const T* x, const float* maps, const float* corrections,
                                             u32 pixels, int channels, int columns, int silu) {
  Chunk<T, PACKED> at(pixels, channels, columns);
  constexpr int N = at.N;
  float shift[N], scale[N], bias[N], along[N], offset[N];
  int count = channels - at.channel;
  maps += (u64)blockIdx.z * 3 * channels + at.channel;
  corrections += (u64)blockIdx.z * 2 * channels + at.channel;
  load<PACKED>(shift, maps, count);
  load<PACKED>(scale, maps + channels, count);
  load<PACKED>(bias, maps + 2 * channels, count);
  load<PACKED>(along, corrections, count);
  load<PACKED>(offset, corrections + channels, count);
#pragma unroll 1
  for (int i = 0; i < PIXELS; ++i) {
    u32 pixel = at.pixel(i);
    u64 place = at.offset(pixel);
    float d[N], v[N], sum[N];
    load<PACKED>(d, dy + place, at.count(pixel));
    load<PACKED>(v, x + place, at.count(pixel));
    load<PACKED>(sum, dx + place, at.count(pixel));
#pragma unroll
    for (int k = 0; k < N; ++k) {
      float apart = v[k] - shift[k], g = through<T>(d[k], apart, scale[k], bias[k], silu);
      sum[k] += fmaf(g, scale[k], fmaf(apart, along[k], offset[k]));
    }
    store<PACKED>(dx + place, sum, at.count(pixel));
  }
}

#define KERNELS(T, t)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                                 \
      group_norm_partial_##t(float* out, const T* x, u32 pixels, int channels, int columns) {                           \
    if (is_packed<T>(channels, x)) {                                                                                    \
      partial<true>(out, x, pixels, channels, columns);                                                                 \
    } else {                                                                                                            \
      partial<false>(out, x, pixels, channels, columns);                                                                \
    }                                                                                                                   \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, 3) group_norm_apply_##t(                                           \
      T* y, const T* x, const float* maps, u32 pixels, int channels, int columns, int silu) {                           \
    if (is_packed<T>(channels, y, x)) {                                                                                 \
      apply<true>(y, x, maps, pixels, channels, columns, silu);                                                         \
    } else {                                                                                                            \
      apply<false>(y, x, maps, pixels, channels, columns, silu);                                                        \
    }                                                                                                                   \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS) group_norm_gradient_partial_##t(                                \
      float* out, const T* dy, const T* x, const float* maps, u32 pixels, int channels, int columns, int silu) {        \
    if (is_packed<T>(channels, dy, x)) {                                                                                \
      gradient_partial<true>(out, dy, x, maps, pixels, channels, columns, silu);                                        \
    } else {                                                                                                            \
      gradient_partial<false>(out, dy, x, maps, pixels, channels, columns, silu);                                       \
    }                                                                                                                   \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS) group_norm_add_gradient_##t(                                    \
      T* dx, const T* dy, const T* x, const float* maps, const float* corrections, u32 pixels, int channels,            \
      int columns, int silu) {                                                                                          \
    if (is_packed<T>(channels, dx, dy, x)) {                                                                            \
      add_gradient<true>(dx, dy, x, maps, corrections, pixels, channels, columns, silu);                                \
    } else {                                                                                                            \
      add_gradient<false>(dx, dy, x, maps, corrections, pixels, channels, columns, silu);                               \
    }                                                                                                                   \
  }
FOR_EACH_TYPE(KERNELS)
