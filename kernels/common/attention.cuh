// What the kernels of attention share: a sequence in parts, tiles of its tokens in shared memory, and products of tiles in f32.
// (src/ops/attention has the contract; cuda.rs lays out Part and Sequence as they are here.)
#pragma once
#include "common/types.cuh"

// Tokens of one tensor, [b, n, heads * d] each. What is not asked for is null.
struct Part {
  const void *q, *k, *v, *dout;
  void *out, *dq, *dk, *dv;
  u32 n;        // tokens
  u32 queries;  // of them, those that are asked for: n, or 0 where nothing read the part's result
  u32 first;    // tokens before this part
  u32 stats;    // rows of the statistics before this part
};
struct Sequence {
  Part part[4];
  u32 parts, n, heads, d;
  u32 stats;    // rows of the statistics
  u32 vectors;  // whether every token of a head begins at a multiple of 16 bytes
  float scale;
  u32 wide;     // whether results are f32, whatever the operands are
};

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;
constexpr u32 STATS_STEP = 64;  // a part's statistics fill whole steps; queries that do not exist have lse = inf, delta = 0
__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

// Tiles of STEP tokens, part by part: of those that are queries, or of all.
template <int STEP, bool QUERIES> struct Tile {
  u32 part = 0, row = 0;

  static __device__ __forceinline__ u32 tokens(const Part& p) { return QUERIES ? p.queries : p.n; }
  // Tile number `index`, counted from the first part's first.
  __device__ __forceinline__ Tile(const Sequence& s, u32 index) {
    for (; part < s.parts; ++part) {
      u32 count = (tokens(s.part[part]) + STEP - 1) / STEP;
      if (index < count) break;
      index -= count;
    }
    row = index * STEP;
  }
  __device__ __forceinline__ bool exists(const Sequence& s) const { return part < s.parts; }
  __device__ __forceinline__ void next(const Sequence& s) {
    row += STEP;
    while (part < s.parts && row >= tokens(s.part[part])) ++part, row = 0;
  }
};

// The first element of this block's head and sample in a tensor of n tokens.
__device__ __forceinline__ u64 head_at(const Sequence& s, u32 n) {
  return ((u64)blockIdx.z * n * s.heads + blockIdx.y) * s.d;
}

// ---- In f32: blocks of 16 x 16 threads; thread (y, x) has rows y * M + i of a tile, so that a row is half a warp's. ----

constexpr int THREADS = 256;
// Rows of a tile in shared memory lie so far apart that 16 lanes reading 16 bytes of neighbouring rows meet no bank twice.
template <int W> constexpr int PITCH = W + 4;

// How W columns are divided among 16 threads: GROUPS times VECTOR neighbours, W / GROUPS apart.
template <int W> struct Columns {
  static constexpr int VECTOR = W < 64 ? W / 16 : 4, GROUPS = W / (16 * VECTOR);
};

// Rows row.. and columns column.. of a head, x, as a tile [ROWS][W]; zeros where there is none.
template <int ROWS, int W>
__device__ __forceinline__ void load_tile(float* tile, const void* x, const Sequence& s, u32 row, u32 n, u32 column) {
  const float* head = (const float*)x + head_at(s, n);
#pragma unroll 4
  for (u32 i = threadIdx.x; i < ROWS * W / 4; i += THREADS) {
    u32 r = i / (W / 4), c = i % (W / 4) * 4, at = column + c;
    Pack<float, 4> a = {};
    if (row + r < n && at < s.d) {
      const float* from = head + (u64)(row + r) * s.heads * s.d + at;
      if (s.vectors) {
        a = *(const Pack<float, 4>*)from;
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (at + k < s.d) a.v[k] = from[k];
      }
    }
    *(Pack<float, 4>*)(tile + r * PITCH<W> + c) = a;
  }
}

// acc[i][j] += row (y * M + i) of a times row (x + 16 j) of b, over `width` columns, a multiple of 4.
template <int M, int N, int PITCH_A, int PITCH_B>
__device__ __forceinline__ void add_dots(float (&acc)[M][N], const float* a, const float* b, u32 width) {
  a += threadIdx.x / 16 * M * PITCH_A;
  b += threadIdx.x % 16 * PITCH_B;
#pragma unroll 2
  for (u32 k = 0; k < width; k += 4) {
    Pack<float, 4> u[M], v[N];
#pragma unroll
    for (int i = 0; i < M; ++i) u[i] = *(const Pack<float, 4>*)(a + i * PITCH_A + k);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = *(const Pack<float, 4>*)(b + 16 * j * PITCH_B + k);
#pragma unroll
    for (int e = 0; e < 4; ++e)
#pragma unroll
      for (int i = 0; i < M; ++i)
#pragma unroll
        for (int j = 0; j < N; ++j) acc[i][j] = fmaf(u[i].v[e], v[j].v[e], acc[i][j]);
  }
}

// acc[i] += row (y * M + i) of p times `keys` rows of b, a multiple of 4, of which this thread has VECTOR columns.
template <int M, int VECTOR, int PITCH_P, int PITCH_B>
__device__ __forceinline__ void add_rows(float (&acc)[M][VECTOR], const float* p, const float* b, u32 keys) {
  p += threadIdx.x / 16 * M * PITCH_P;
  b += threadIdx.x % 16 * VECTOR;
#pragma unroll 2
  for (u32 k = 0; k < keys; k += 4) {
    Pack<float, 4> u[M];
    Pack<float, VECTOR> v[4];
#pragma unroll
    for (int i = 0; i < M; ++i) u[i] = *(const Pack<float, 4>*)(p + i * PITCH_P + k);
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = *(const Pack<float, VECTOR>*)(b + (k + e) * PITCH_B);
#pragma unroll
    for (int e = 0; e < 4; ++e)
#pragma unroll
      for (int i = 0; i < M; ++i)
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) acc[i][c] = fmaf(u[i].v[e], v[e].v[c], acc[i][c]);
  }
}

// This thread's scores as part of a tile [][PITCH]: the rows are read by this warp alone.
template <int M, int N, int PITCH> __device__ __forceinline__ void put_scores(float* tile, const float (&p)[M][N]) {
  __syncwarp();
#pragma unroll
  for (int i = 0; i < M; ++i)
#pragma unroll
    for (int j = 0; j < N; ++j) tile[(threadIdx.x / 16 * M + i) * PITCH + threadIdx.x % 16 + 16 * j] = p[i][j];
  __syncwarp();
}

// acc times `factor` as columns column.. of token `row` of a head; only what there is.
template <int VECTOR>
__device__ __forceinline__ void store_row(
    void* x, const Sequence& s, u32 row, u32 n, const float (&acc)[VECTOR], float factor, u32 column) {
  if (row >= n || column >= s.d) return;
  float* to = (float*)x + head_at(s, n) + (u64)row * s.heads * s.d + column;
  Pack<float, VECTOR> a;
#pragma unroll
  for (int c = 0; c < VECTOR; ++c) a.v[c] = acc[c] * factor;
  if (s.vectors) {
    *(Pack<float, VECTOR>*)to = a;
  } else {
#pragma unroll
    for (int c = 0; c < VECTOR; ++c)
      if (column + c < s.d) to[c] = a.v[c];
  }
}
