// Gradients of low-rank factors on Hopper, sums over rows: see src/ops/linear/cuda/gradients.rs.
//
//   linear_gradients_*   wide^T low of chunks of the rows: dB = dy^T t, and dA^T = x^T u, for all layers that read one x at once
//
// A launch does a list of them. One block per multiprocessor walks the tiles of all: 128 columns of `wide`, 64 for each of two
// warp groups, all columns of `low`, one chunk. Both operands are taken from rows as they lie in memory, so that depth is
// across: neighbours are rows of A and columns of B. Bound by memory, which reads each `wide` once.
#include "common/hopper.cuh"
// shared linear_gradients_*_32 173184
// shared linear_gradients_*_64 206016
// hot linear_gradients_*

constexpr int MOST = 16, PANELS = 3, ROWS = 64, GROUPS = 2, COLUMNS = 64 * GROUPS, WARPS = 4 * GROUPS;

// Some columns of a `low`, from `first` on, of which the first `rank` are there. The sum of chunk c, column i of `wide` and
// column r goes to element c chunk_stride + i across + r along of `out`.
struct Panel {
  TensorMap map;
  float* out;
  u32 first, rank, across, along, chunk_stride, _pad[9];
};

struct Problem {
  TensorMap wide;
  Panel panels[PANELS];
  // The number of the tile behind its last.
  u32 end;
  // Columns of `wide`, rows of everything, rows of a chunk, panels.
  u32 width, rows, chunk, count, _pad[11];
};

struct Gradients {
  Problem problems[MOST];
  u32 count, _pad[15];
};

// This block's tiles, one after the other: columns first, so that what reads a `low` does so at about the same time.
struct Walk {
  const Gradients& all;
  const Problem* p;
  u32 tile, first, column, chunk;
  int steps;

  __device__ __forceinline__ Walk(const Gradients& all) : all(all), p(all.problems), tile(blockIdx.x), first(0) {}
  __device__ __forceinline__ bool find() {
    if (tile >= all.problems[all.count - 1].end) return false;
    for (; tile >= p->end; ++p) first = p->end;
    const u32 here = tile - first, columns = (p->width + COLUMNS - 1) / COLUMNS;
    chunk = here / columns;
    column = (here - chunk * columns) * COLUMNS;
    steps = (min(p->chunk, p->rows - chunk * p->chunk) + ROWS - 1) / ROWS;
    tile += gridDim.x;
    return true;
  }
};

// Stages: [64 rows][64 columns] of `wide` for each group, then [64 rows][WIDTH columns] of each panel.
template <int WIDTH> struct Stages {
  static constexpr int COUNT = WIDTH == 32 ? 6 : 5;
  static constexpr u32 WIDE = ROWS * 128, LOW = ROWS * WIDTH * 2, BYTES = GROUPS * WIDE + PANELS * LOW, BARRIERS = 16 * COUNT;
  u32 stages, barriers;
  int stage = 0;
  u32 phase = 0;

  __device__ __forceinline__ Stages(u32 stages) : stages(stages), barriers(stages + COUNT * BYTES) {}
  __device__ __forceinline__ u32 at() const { return stages + stage * BYTES; }
  __device__ __forceinline__ u32 full() const { return barriers + 8 * stage; }
  __device__ __forceinline__ u32 empty() const { return barriers + 8 * (COUNT + stage); }
  __device__ __forceinline__ void next() {
    if (++stage == COUNT) {
      stage = 0;
      phase ^= 1;
    }
  }
};

template <int WIDTH> __device__ __forceinline__ void copy(const Walk& walk, Stages<WIDTH>& ring) {
  using Ring = Stages<WIDTH>;
  const Problem& p = *walk.p;
#pragma unroll 1
  for (int k = 0; k < walk.steps; ++k) {
    const int row = walk.chunk * p.chunk + k * ROWS;
    barrier_wait(ring.empty(), ring.phase ^ 1);
    barrier_expect(ring.full(), GROUPS * Ring::WIDE + p.count * Ring::LOW);
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) tma_load(ring.at() + g * Ring::WIDE, &p.wide, ring.full(), walk.column + 64 * g, row);
    for (u32 i = 0; i < p.count; ++i)
      tma_load(ring.at() + GROUPS * Ring::WIDE + i * Ring::LOW, &p.panels[i].map, ring.full(), p.panels[i].first, row);
    ring.next();
  }
}

// 64 columns of `wide` by COUNT panels.
template <typename T, int WIDTH, int COUNT> __device__ __forceinline__ void tile(const Walk& walk, Stages<WIDTH>& ring, u32 group) {
  using Ring = Stages<WIDTH>;
  constexpr int N = COUNT * WIDTH, SWIZZLE = 2 * WIDTH;
  const u32 lane = threadIdx.x % 32;
  float d[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) d[i] = 0.0f;
  settle(d);
  u32 before = 0;
#pragma unroll 1
  for (int k = 0; k < walk.steps; ++k) {
    barrier_wait(ring.full(), ring.phase);
    const u64 a = descriptor<128>(ring.at() + group * Ring::WIDE, 16, 1024);
    const u64 b = descriptor<SWIZZLE>(ring.at() + GROUPS * Ring::WIDE, Ring::LOW, 8 * SWIZZLE);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < ROWS / 16; ++i) Wgmma<T, N>::template ss<1, 1>(d, a + 128 * i, b + SWIZZLE * i);
    wgmma_commit();
    // The product before this one has read its stage.
    wgmma_wait<1>();
    if (k > 0 && lane == 0) barrier_arrive(before);
    before = ring.empty();
    ring.next();
  }
  wgmma_wait<0>();
  if (lane == 0) barrier_arrive(before);

  const Problem& p = *walk.p;
  const u32 column = walk.column + 64 * group + threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int c = 0; c < COUNT; ++c) {
    const Panel& panel = p.panels[c];
    const u32 across = panel.across, along = panel.along, rank = panel.rank;
    // Neighbours go to neighbours, in pairs.
    const bool pairs = along == 1 && across % 2 == 0;
    float* out = panel.out + (u64)walk.chunk * panel.chunk_stride;
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i += 2) {
      const u32 at = column + i / 2 % 2 * 8, r = 8 * (i / 4) + lane % 4 * 2;
      const float v0 = d[c * WIDTH / 2 + i], v1 = d[c * WIDTH / 2 + i + 1];
      if (at >= p.width || r >= rank) continue;
      float* to = out + at * across + r * along;
      if (pairs) {
        *(float2*)to = make_float2(v0, v1);
      } else {
        to[0] = v0;
        if (r + 1 < rank) to[along] = v1;
      }
    }
  }
}

extern __shared__ unsigned char raw[];

template <typename T, int WIDTH> __device__ __forceinline__ void gradients(const Gradients& all) {
  using Ring = Stages<WIDTH>;
  Ring ring((smem_u32(raw) + 1023) & ~1023u);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Ring::COUNT; ++i) {
      barrier_init(ring.barriers + 8 * i, 1);
      barrier_init(ring.barriers + 8 * (Ring::COUNT + i), WARPS);
    }
    barrier_init_fence();
  }
  __syncthreads();
  Walk walk(all);
  if (threadIdx.x >= 32 * WARPS) {
    if (threadIdx.x == 32 * WARPS)
#pragma unroll 1
      while (walk.find()) copy(walk, ring);
    return;
  }
  const u32 group = threadIdx.x / 128;
#pragma unroll 1
  while (walk.find()) {
    if (walk.p->count == 1)
      tile<T, WIDTH, 1>(walk, ring, group);
    else if (walk.p->count == 2)
      tile<T, WIDTH, 2>(walk, ring, group);
    else
      tile<T, WIDTH, 3>(walk, ring, group);
  }
}

#define GRADIENTS(T, t, WIDTH)                                                                                          \
  extern "C" __global__ void __launch_bounds__(32 * (WARPS + 1), 1)                                                     \
      linear_gradients_##t##_##WIDTH(const __grid_constant__ Gradients all) {                                           \
    gradients<T, WIDTH>(all);                                                                                           \
  }
GRADIENTS(bf16, bf16, 32)
GRADIENTS(bf16, bf16, 64)
GRADIENTS(f16, f16, 32)
GRADIENTS(f16, f16, 64)
