// Convolution of NHWC images as a matrix product: rows are windows, columns are output channels; a row of a window is `depth`
// numbers that lie side by side in the image, so that the sum runs over (window row, number) and nothing is divided. What
// lies outside the image is filled with zeros on the way to shared memory.
#pragma once
#include "common/rows.cuh"

// One convolution, or the four of the parities of an image enlarged twofold (the grid's second dimension).
struct Conv {
  // Of the image.
  int height, width, inputs;
  // Windows of an image, of all images, and channels of the result.
  int down, across, outputs;
  u32 windows;
  // Of a window; `depth` is its width times `inputs`.
  int rows, depth;
  int stride, top, left, doubled;
};

// Windows per block.
constexpr int M = 128, THREADS = 256;

__device__ __forceinline__ int parity() { return blockIdx.y; }

// Where a window lies: it begins at row `row`, number `column` of its image, which is at `at` if that is inside.
template <typename T> struct Window {
  int row, column;
  const T* at;

  __device__ __forceinline__ Window(const Conv& p, const T* x, u32 window) {
    u32 line = window / p.across, image = line / p.down;
    int top = p.doubled ? 1 - parity() / 2 : p.top, left = p.doubled ? 1 - parity() % 2 : p.left;
    row = (int)(line - image * p.down) * p.stride - top;
    column = ((int)(window - line * p.across) * p.stride - left) * p.inputs;
    at = x + ((long long)image * p.height + row) * p.width * p.inputs + column;
    if (window >= p.windows) row = -(1 << 30);
  }
  // How many numbers are in the image's row that window row r meets.
  __device__ __forceinline__ int numbers(const Conv& p, int r) const {
    return (u32)(row + r) < (u32)p.height ? p.width * p.inputs : 0;
  }
  // Whether number k of window row r is there.
  __device__ __forceinline__ bool has(const Conv& p, int r, int k) const {
    return (u32)(column + k) < (u32)numbers(p, r) && k < p.depth;
  }
  __device__ __forceinline__ const T* number(const Conv& p, int r, int k) const {
    return at + (long long)r * p.width * p.inputs + k;
  }
};

// The pixel of the result that a window gives.
__device__ __forceinline__ u64 pixel(const Conv& p, u32 window) {
  if (!p.doubled) return window;
  u32 line = window / p.across;
  return ((u64)line * 2 + parity() / 2) * 2 * p.across + 2 * (window - line * p.across) + parity() % 2;
}

// What is done to a result before something is added to it: nothing.
struct Nothing {
  __device__ __forceinline__ float of(float v) const { return v; }
};

// Writes N neighbouring channels, of which `count` are there.
template <bool PACKED, typename T, int N, typename Then = Nothing>
__device__ __forceinline__ void finish(T* y, const T* add, float (&v)[N], const float (&bias)[N], int count, Then then = {}) {
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = then.of(v[i] + bias[i]);
  if (add) {
    float a[N];
    load<PACKED>(a, add, count);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] += a[i];
  }
  store<PACKED>(y, v, count);
}

// In single precision, without tensor cores: the CPU's chains of fused multiply-adds, cut where it cuts them. A thread has 8
// windows times TN channels; tiles of 16 numbers lie in shared memory with the windows, and channels, side by side.
// There may be no bias and nothing to add.
template <int TN, typename Then = Nothing>
__device__ __forceinline__ void simt(float* y, const float* x, const float* w, const float* bias, const float* add, const Conv& p,
                                     Then then = {}) {
  constexpr int N = 16 * TN, K = 16, CUT = 256, PAD = 4;
  __shared__ __align__(16) float a_smem[2][K][M + PAD], b_smem[2][K][N + PAD];
  const int tid = threadIdx.x, tx = tid % 16, ty = tid / 16, tiles_n = (p.outputs + N - 1) / N;
  const u32 m0 = blockIdx.x / tiles_n * M;
  const int n0 = blockIdx.x % tiles_n * N;
  const bool packed = p.inputs % 4 == 0 && are_aligned(x, w);
  w += (u64)parity() * p.outputs * p.rows * p.depth;

  // A thread fetches the same four numbers of two windows and of one channel.
  const int fetched = tid / 4, part = tid % 4 * 4;
  const Window<float> window[2] = {Window<float>(p, x, m0 + fetched), Window<float>(p, x, m0 + fetched + 64)};
  const bool has_channel = fetched < N && n0 + fetched < p.outputs;
  const float* channel = w + (u64)(n0 + fetched) * p.rows * p.depth;
  float a[2][4], b[4];
  auto fetch = [&](int r, int k) {
    k += part;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* from = window[i].number(p, r, k);
      if (packed) {
        load<true>(a[i], from, window[i].has(p, r, k) ? 4 : 0);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) a[i][j] = window[i].has(p, r, k + j) ? from[j] : 0.0f;
      }
    }
    const float* from = channel + (u64)r * p.depth + k;
    const int count = has_channel ? p.depth - k : 0;
    if (packed) {
      load<true>(b, from, count);
    } else {
      load<false>(b, from, count);
    }
  };
  auto keep = [&](int s) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      a_smem[s][part + j][fetched] = a[0][j];
      a_smem[s][part + j][fetched + 64] = a[1][j];
      if (fetched < N) b_smem[s][part + j][fetched] = b[j];
    }
  };

  float total[8][TN], chain[8][TN];
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int j = 0; j < TN; ++j) total[i][j] = chain[i][j] = 0.0f;
  fetch(0, 0);
  keep(0);
  __syncthreads();
#pragma unroll 1
  for (int r = 0, k = 0, s = 0; r < p.rows; s ^= 1) {
    int next_r = r, next_k = k + K;
    if (next_k >= p.depth) next_k = 0, ++next_r;
    if (next_r < p.rows) fetch(next_r, next_k);
#pragma unroll
    for (int kk = 0; kk < K; ++kk) {
      float left[8], right[TN];
      *(Pack<float, 4>*)left = *(const Pack<float, 4>*)&a_smem[s][kk][4 * ty];
      *(Pack<float, 4>*)(left + 4) = *(const Pack<float, 4>*)&a_smem[s][kk][64 + 4 * ty];
      *(Pack<float, TN>*)right = *(const Pack<float, TN>*)&b_smem[s][kk][TN * tx];
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j) chain[i][j] = fmaf(left[i], right[j], chain[i][j]);
    }
    if (next_k % CUT == 0)
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j) {
          total[i][j] += chain[i][j];
          chain[i][j] = 0.0f;
        }
    if (next_r < p.rows) keep(s ^ 1);
    __syncthreads();
    r = next_r, k = next_k;
  }

  const int column = n0 + TN * tx, count = p.outputs - column;
  const bool packed_y = p.outputs % TN == 0 && are_aligned(y, add);
  float of_channel[TN];
  load<false>(of_channel, bias + column, bias ? count : 0);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    u32 m = m0 + (i / 4) * 64 + 4 * ty + i % 4;
    if (m >= p.windows) break;
    const u64 at = pixel(p, m) * p.outputs + column;
    const float* more = add ? add + at : 0;
    if (packed_y) {
      finish<true>(y + at, more, total[i], of_channel, count, then);
    } else {
      finish<false>(y + at, more, total[i], of_channel, count, then);
    }
  }
}
