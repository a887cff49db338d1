// Convolution of NHWC images as a matrix product on wgmma: see src/ops/conv2d. Rows of a tile are windows that lie together,
// 16 across; columns are output channels; the sum runs over (window row, window column, 64 input channels). What one tap of
// all windows of a tile meets is one box of the image, which begins a pixel further for the next tap: padding is what a bulk
// copy fills with zeros, a stride is the step of its elements.
//
// Persistent blocks: one thread fetches, two groups multiply 64 MI windows each. A thread beside the fetching one serves each
// of them on the way out: results leave through two buffers of 64 windows by 64 channels, where what is to be added has
// been fetched before.
// shared conv2d_* 230656
// hot conv2d_*
#include "common/hopper.cuh"

// One convolution, or the four of the parities (row, column) of an image enlarged twofold, each with a weight of its own and
// every other pixel of the result.
struct Maps {
  TensorMap x, w, add, y[4];
};
struct Conv {
  // Of the result, in tiles.
  int across, down, columns, tiles;
  // Of a window, and of 64 inputs.
  int rows, taps_across, steps;
  int stride, top, left;
  // Of outputs.
  int outputs, parities;
};

constexpr int THREADS = 384, ACROSS = 16;
constexpr u32 PANEL = 64 * 128;

// Which windows and channels a tile has.
struct Tile {
  int channel, x, y, parity, image;
  __device__ __forceinline__ Tile(const Conv& p, int tile, int down, int channels) {
    channel = tile % p.columns * channels, tile /= p.columns;
    parity = tile % p.parities, tile /= p.parities;
    x = tile % p.across * ACROSS, tile /= p.across;
    y = tile % p.down * down, image = tile / p.down;
  }
};

// Piece `i` of a group's share of the block's tiles: 64 windows, 4 down, by 64 channels. It goes through buffer i % 2.
template <int MI, int N> struct Piece {
  Tile at;
  int buffer, channel, y;
  __device__ __forceinline__ Piece(const Conv& p, int i, int group)
      : at(p, blockIdx.x + i / (MI * N / 64) * gridDim.x, 8 * MI, N) {
    const int part = i % (MI * N / 64);
    buffer = 2 * group + i % 2;
    channel = at.channel + part / MI * 64;
    y = at.y + 4 * (group * MI + part % MI);
  }
};

template <typename T> __device__ __forceinline__ void add2(float& a, float& b, u32 two) {
  const Pack<T, 2> v = *(const Pack<T, 2>*)&two;
  a += widen(v.v[0]), b += widen(v.v[1]);
}

// Tiles of 128 MI windows by N channels.
template <typename T, int MI, int N, int STAGES>
__device__ __forceinline__ void convolve(const Maps& maps, const float* bias, bool adds, const Conv& p) {
  constexpr int DOWN = 8 * MI, PIECES = MI * N / 64;
  constexpr u32 A = 128 * MI * 128, STAGE = A + N * 128, GROUP = 2 * PANEL;
  extern __shared__ unsigned char raw[];
  const u32 base = (smem_u32(raw) + 1023) & ~1023u, out = base + STAGES * STAGE, full = out + 2 * GROUP, empty = full + 8 * STAGES;
  // Of each group's two buffers: there to be written to, and written.
  const u32 ready = empty + 8 * STAGES, written = ready + 32;
  const int group = threadIdx.x / 128, steps = p.rows * p.taps_across * p.steps;
  if (threadIdx.x == 0) {
    prefetch_map(&maps.x);
    prefetch_map(&maps.w);
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 8);
    }
    for (int b = 0; b < 4; ++b) {
      barrier_init(ready + 8 * b, 1);
      barrier_init(written + 8 * b, 4);
    }
    barrier_init_fence();
  }
  __syncthreads();

  if (group == 0) {
    registers_give<40>();
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 != 0) return;
    if (warp == 0) {
      int s = 0;
      u32 phase = 1;
#pragma unroll 1
      for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        const Tile at(p, tile, DOWN, N);
        const bool doubled = p.parities > 1;
        const int x = at.x * p.stride - (doubled ? 1 - at.parity % 2 : p.left);
        const int y = at.y * p.stride - (doubled ? 1 - at.parity / 2 : p.top);
        int tap = 0;
#pragma unroll 1
        for (int r = 0; r < p.rows; ++r)
#pragma unroll 1
          for (int c = 0; c < p.taps_across; ++c, ++tap)
#pragma unroll 1
            for (int k = 0; k < p.steps; ++k) {
              barrier_wait(empty + 8 * s, phase);
              barrier_expect(full + 8 * s, STAGE);
              tma_load(base + s * STAGE, &maps.x, full + 8 * s, k * 64, x + c, y + r, at.image);
              tma_load(base + s * STAGE + A, &maps.w, full + 8 * s, k * 64, tap, at.channel, at.parity);
              if (++s == STAGES) s = 0, phase ^= 1;
            }
      }
    } else if (warp <= 2) {
      const int g = warp - 1, pieces = ((p.tiles - 1 - (int)blockIdx.x) / (int)gridDim.x + 1) * PIECES;
#pragma unroll 1
      for (int i = 0; i < pieces + 2; ++i) {
        if (i >= 2) {
          const Piece<MI, N> done(p, i - 2, g);
          barrier_wait(written + 8 * done.buffer, (i - 2) / 2 & 1);
          tma_store(&maps.y[done.at.parity], out + done.buffer * PANEL, done.channel, done.at.x, done.y, done.at.image);
          tma_commit();
          tma_wait_read<0>();
        }
        if (i < pieces) {
          const Piece<MI, N> next(p, i, g);
          const u32 barrier = ready + 8 * next.buffer;
          if (adds) {
            barrier_expect(barrier, PANEL);
            tma_load(out + next.buffer * PANEL, &maps.add, barrier, next.channel, next.at.x, next.y, next.at.image);
          } else {
            barrier_arrive(barrier);
          }
        }
      }
    }
    return;
  }

  registers_take<232>();
  const int g = group - 1, lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4, q = lane % 4;
  int s = 0;
  u32 phase = 0, out_phase = 0;
#pragma unroll 1
  for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    float d[MI][N / 2];
#pragma unroll
    for (int i = 0; i < MI; ++i) {
#pragma unroll
      for (int j = 0; j < N / 2; ++j) d[i][j] = 0.0f;
      settle(d[i]);
    }
    int last = -1;
#pragma unroll 1
    for (int k = 0; k < steps; ++k) {
      barrier_wait(full + 8 * s, phase);
      const u64 a = descriptor<128>(base + s * STAGE + g * MI * PANEL, 16, 1024), b = descriptor<128>(base + s * STAGE + A, 16, 1024);
      wgmma_fence();
#pragma unroll
      for (int kk = 0; kk < 4; ++kk)
#pragma unroll
        for (int i = 0; i < MI; ++i) Wgmma<T, N>::ss(d[i], a + i * (PANEL / 16) + 2 * kk, b + 2 * kk);
      wgmma_commit();
      wgmma_wait<1>();
      if (last >= 0 && lane == 0) barrier_arrive(empty + 8 * last);
      last = s;
      if (++s == STAGES) s = 0, phase ^= 1;
    }
    wgmma_wait<0>();
    if (lane == 0) barrier_arrive(empty + 8 * last);

    const int channel = tile % p.columns * N + 2 * q;
#pragma unroll
    for (int part = 0; part < PIECES; ++part) {
      const int b = 2 * g + part % 2, mi = part % MI, first = part / MI * 64;
      const u32 buffer = out + b * PANEL;
      float2 of_channel[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int c = channel + first + 8 * j;
        of_channel[j] = c < p.outputs ? *(const float2*)(bias + c) : float2{0.0f, 0.0f};
      }
      barrier_wait(ready + 8 * b, out_phase);
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const u32 to = buffer + swizzled(row + 8 * h, j) + 4 * q;
          const float* v = &d[mi][(first / 8 + j) * 4 + 2 * h];
          float left = v[0] + of_channel[j].x, right = v[1] + of_channel[j].y;
          if (adds) add2<T>(left, right, load_shared(to));
          store_shared(to, pack2<T>(left, right));
        }
      fence_async();
      __syncwarp();
      if (lane == 0) barrier_arrive(written + 8 * b);
      if (part % 2 == 1) out_phase ^= 1;
    }
  }
}

#define KERNEL(NAME, T, t, MI, N, STAGES)                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                              \
      conv2d_##NAME##_##t(const __grid_constant__ Maps maps, const float* bias, u32 adds, const __grid_constant__ Conv p) { \
    convolve<T, MI, N, STAGES>(maps, bias, adds, p);                                                                    \
  }
#define KERNELS(T, t)                                                                                                   \
  KERNEL(128x128, T, t, 1, 128, 6)                                                                                          \
  KERNEL(128x256, T, t, 1, 256, 4)                                                                                         \
  KERNEL(256x128, T, t, 2, 128, 4)
KERNELS(f16, f16)
KERNELS(bf16, bf16)
