// Convolution of NHWC images as a matrix product, and its weights put in order: see src/ops/conv2d.
// shared conv2d_wide_*16_* 65536
// shared conv2d_narrow_*16_* 40960
// shared conv2d_ragged_* 40960
// hot conv2d_wide_* conv2d_narrow_* conv2d_ragged_*
#include "common/conv.cuh"
#include "common/mma.cuh"

// Eight numbers to shared memory, with zeros for those that are not there; `PACKED`: all of them are as the first is.
template <bool PACKED, typename T, typename Has> __device__ __forceinline__ void copy_chunk(void* to, const T* from, Has has) {
  if constexpr (PACKED) {
    cp_async16(smem_u32(to), from, has(0) ? 16 : 0);
  } else {
    Pack<T, 8> v;
#pragma unroll
    for (int e = 0; e < 8; ++e) v.v[e] = has(e) ? from[e] : narrow<T>(0.0f);
    *(Pack<T, 8>*)to = v;
  }
}

// In half precision on tensor cores, summed in f32: tiles of 32 numbers go through a ring in shared memory. The result, of
// type O, is put in order there. `PACKED`: whatever 16 bytes a thread copies are inside or outside as a whole.
template <typename T, typename O, int N, bool PACKED>
__device__ __forceinline__ void mma(O* y, const T* x, const T* w, const float* bias, const O* add, const Conv& p) {
  constexpr int K = 32, STAGES = 4, WARPS_N = N / 32, WARPS_M = 8 / WARPS_N, MI = M / WARPS_M / 16, NI = 4;
  constexpr u32 A_BYTES = M * K * 2, STAGE = A_BYTES + N * K * 2;
  extern __shared__ __align__(128) unsigned char raw[];
  const u32 base = smem_u32(raw);
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, tiles_n = (p.outputs + N - 1) / N;
  const int wm = warp / WARPS_N * 16 * MI, wn = warp % WARPS_N * 8 * NI;
  const u32 m0 = blockIdx.x / tiles_n * M;
  const int n0 = blockIdx.x % tiles_n * N, steps = p.rows * ((p.depth + K - 1) / K);
  w += (u64)parity() * p.outputs * p.rows * p.depth;

  // A row of a tile is four chunks of 16 bytes, two rows share 128 bytes; so chunked, ldmatrix meets no bank twice.
  auto at = [](int row, int chunk) -> u32 { return row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4); };

  // A thread fetches the same chunk of two windows and of up to two channels; where from goes along with it.
  constexpr int NB = (N + 63) / 64;
  const int fetched = tid / 4, chunk = tid % 4;
  const Window<T> window[2] = {Window<T>(p, x, m0 + fetched), Window<T>(p, x, m0 + fetched + 64)};
  int r = 0, k = 8 * chunk, numbers[2];
  const T *from[2], *kernel[NB];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    from[i] = window[i].at + k;
    numbers[i] = window[i].numbers(p, 0);
  }
#pragma unroll
  for (int i = 0; i < NB; ++i) kernel[i] = w + (u64)(n0 + fetched + 64 * i) * p.rows * p.depth + k;
  auto fetch = [&](int s) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      copy_chunk<PACKED>(raw + s * STAGE + at(fetched + 64 * i, chunk), from[i],
                         [&](int e) { return k + e < p.depth && (u32)(window[i].column + k + e) < (u32)numbers[i]; });
#pragma unroll
    for (int i = 0; i < NB; ++i)
      if (N >= 64 || fetched < N)
        copy_chunk<PACKED>(raw + s * STAGE + A_BYTES + at(fetched + 64 * i, chunk), kernel[i],
                           [&](int e) { return k + e < p.depth && n0 + fetched + 64 * i < p.outputs; });
    k += K;
    int image_step = K, kernel_step = K;
    if (k - 8 * chunk >= p.depth) {
      const int back = k - 8 * chunk - K;
      k = 8 * chunk;
      image_step = p.width * p.inputs - back;
      kernel_step = p.depth - back;
      ++r;
#pragma unroll
      for (int i = 0; i < 2; ++i) numbers[i] = window[i].numbers(p, r);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) from[i] += image_step;
#pragma unroll
    for (int i = 0; i < NB; ++i) kernel[i] += kernel_step;
  };
#pragma unroll 1
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < steps) fetch(s);
    if constexpr (PACKED) cp_async_commit();
  }

  float d[MI][NI][4];
#pragma unroll
  for (int i = 0; i < MI; ++i)
#pragma unroll
    for (int j = 0; j < NI; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) d[i][j][e] = 0.0f;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if constexpr (PACKED) cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) fetch((step + STAGES - 1) % STAGES);
    if constexpr (PACKED) cp_async_commit();
    const u32 a_tile = base + step % STAGES * STAGE, b_tile = a_tile + A_BYTES;
#pragma unroll
    for (int kk = 0; kk < 2; ++kk) {
      u32 a[MI][4], b[NI / 2][4];
#pragma unroll
      for (int i = 0; i < MI; ++i) ldmatrix4(a[i], a_tile + at(wm + 16 * i + lane % 16, 2 * kk + lane / 16));
#pragma unroll
      for (int j = 0; j < NI / 2; ++j)
        ldmatrix4(b[j], b_tile + at(wn + 16 * j + lane % 8 + lane / 16 * 8, 2 * kk + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int j = 0; j < NI; ++j) mma16816<T>(d[i][j], a[i], b[j / 2][2 * (j % 2)], b[j / 2][2 * (j % 2) + 1]);
    }
  }

  // The tile of results in f32, in chunks of four numbers that change places with the row.
  auto place = [&](int row, int column) -> float* {
    return (float*)raw + row * N + ((column / 4 ^ (row & 7)) * 4 + column % 4);
  };
  __syncthreads();
#pragma unroll
  for (int i = 0; i < MI; ++i)
#pragma unroll
    for (int j = 0; j < NI; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        Pack<float, 2> two = {d[i][j][2 * h], d[i][j][2 * h + 1]};
        *(Pack<float, 2>*)place(wm + 16 * i + lane / 4 + 8 * h, wn + 8 * j + lane % 4 * 2) = two;
      }
  __syncthreads();
  constexpr int E = 16 / sizeof(O), PARTS = N / E;
  const int column = tid % PARTS * E, count = p.outputs - n0 - column;
  const bool packed_y = p.outputs % E == 0 && are_aligned(y, add);
  float of_channel[E];
  load<false>(of_channel, bias + n0 + column, count);
#pragma unroll 1
  for (int row = tid / PARTS; row < M && m0 + row < p.windows; row += THREADS / PARTS) {
    float v[E];
#pragma unroll
    for (int e = 0; e < E; e += 4) *(Pack<float, 4>*)(v + e) = *(const Pack<float, 4>*)place(row, column + e);
    const u64 at = pixel(p, m0 + row) * p.outputs + n0 + column;
    const O* more = add ? add + at : 0;
    if (packed_y) {
      finish<true>(y + at, more, v, of_channel, count);
    } else {
      finish<false>(y + at, more, v, of_channel, count);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    conv2d_wide_f32(float* y, const float* x, const float* w, const float* bias, const float* add, const Conv p) {
  simt<4>(y, x, w, bias, add, p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    conv2d_narrow_f32(float* y, const float* x, const float* w, const float* bias, const float* add, const Conv p) {
  simt<1>(y, x, w, bias, add, p);
}

#define PRODUCT(NAME, T, t, O, o, N, PACKED)                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                              \
      conv2d_##NAME##_##t##_##o(O* y, const T* x, const T* w, const float* bias, const O* add, const Conv p) {          \
    mma<T, O, N, PACKED>(y, x, w, bias, add, p);                                                                        \
  }
#define PRODUCTS(T, t, O, o)                                                                                            \
  PRODUCT(wide, T, t, O, o, 128, true)                                                                                  \
  PRODUCT(narrow, T, t, O, o, 32, true)                                                                                 \
  PRODUCT(ragged, T, t, O, o, 32, false)
PRODUCTS(f16, f16, f16, f16)
PRODUCTS(f16, f16, float, f32)
PRODUCTS(bf16, bf16, bf16, bf16)
PRODUCTS(bf16, bf16, float, f32)

// [out, in, taps] to [out, taps, in]
template <typename T> __device__ __forceinline__ void arrange(T* y, const T* w, u32 inputs, u32 taps, u32 n) {
  u32 i = global_thread();
  if (i >= n) return;
  u32 tap = i / inputs, output = tap / taps;
  y[i] = w[(output * inputs + i - tap * inputs) * taps + tap - output * taps];
}
extern "C" __global__ void conv2d_arrange_2(u16* y, const u16* w, u32 inputs, u32 taps, u32 n) { arrange(y, w, inputs, taps, n); }
extern "C" __global__ void conv2d_arrange_4(u32* y, const u32* w, u32 inputs, u32 taps, u32 n) { arrange(y, w, inputs, taps, n); }

// The rows (columns) of a 3x3 window that fall on row (column) `tap` of two that it meets.
struct Range {
  int first, end;
  __device__ __forceinline__ Range(int parity, int tap) : first(tap ? 1 + parity : 0), end(tap ? 3 : 1 + parity) {}
};
template <typename T> __device__ __forceinline__ void fold(float* y, const T* w, u32 outputs, u32 inputs) {
  u32 i = global_thread();
  if (i >= 16 * outputs * inputs) return;
  u32 tap = i / inputs, kernel = tap / 4, parity = kernel / outputs;
  const T* taps = w + ((kernel - parity * outputs) * inputs + i - tap * inputs) * 9;
  Range rows(parity / 2, tap / 2 % 2), columns(parity % 2, tap % 2);
  double sum = -0.0;
  for (int r = rows.first; r < rows.end; ++r)
    for (int c = columns.first; c < columns.end; ++c) sum += widen(taps[r * 3 + c]);
  y[i] = sum;
}
#define FOLD(T, t)                                                                                                      \
  extern "C" __global__ void conv2d_fold_##t(float* y, const T* w, u32 outputs, u32 inputs) { fold(y, w, outputs, inputs); }
FOR_EACH_TYPE(FOLD)

// For the gradient to the image: [in, taps, out], the last tap first.
template <typename T> __device__ __forceinline__ void turn(T* y, const T* w, u32 inputs, u32 taps, u32 n) {
  u32 i = global_thread(), outputs = n / (inputs * taps);
  if (i >= n) return;
  u32 tap = i / outputs, input = tap / taps, output = i - tap * outputs;
  y[i] = w[(output * inputs + input) * taps + taps - 1 - (tap - input * taps)];
}
extern "C" __global__ void conv2d_turn_2(u16* y, const u16* w, u32 inputs, u32 taps, u32 n) { turn(y, w, inputs, taps, n); }
extern "C" __global__ void conv2d_turn_4(u32* y, const u32* w, u32 inputs, u32 taps, u32 n) { turn(y, w, inputs, taps, n); }

// For the gradient to the image that is enlarged, [in, 4, 4, out]: the rows (columns) of a 3x3 window that meet a pixel in row
// (column) tap - 1 of its enlarged ones.
template <typename T> __device__ __forceinline__ void turn_folded(float* y, const T* w, u32 outputs, u32 inputs) {
  u32 i = global_thread();
  if (i >= 16 * outputs * inputs) return;
  u32 kernel = i / outputs, input = kernel / 16;
  int row = kernel / 4 % 4, column = kernel % 4;
  const T* taps = w + ((i - kernel * outputs) * inputs + input) * 9;
  double sum = -0.0;
  for (int r = max(2 - row, 0); r < min(4 - row, 3); ++r)
    for (int c = max(2 - column, 0); c < min(4 - column, 3); ++c) sum += widen(taps[r * 3 + c]);
  y[i] = sum;
}
#define TURN_FOLDED(T, t)                                                                                               \
  extern "C" __global__ void conv2d_turn_folded_##t(float* y, const T* w, u32 outputs, u32 inputs) {                    \
    turn_folded(y, w, outputs, inputs);                                                                                 \
  }
FOR_EACH_TYPE(TURN_FOLDED)
