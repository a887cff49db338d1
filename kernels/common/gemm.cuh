// Products of matrices, one square tile of the result per block of 256 threads. Every element is one chain of multiply-adds
// in an order that depends on the depth alone: not on how many rows or columns there are, nor on where in a tile it falls.
//
// Operands come through shared memory in four stages of 64 bytes of depth: 16 steps in f32, 32 in the halves. The result goes
// back through shared memory, so that whoever stores it has neighbouring columns at hand.
#pragma once
#include "common/mma.cuh"

constexpr int THREADS = 256, STAGES = 4;

// SIZE rows of A or columns of B, and 64 bytes of depth. ALONG: neighbours in memory are neighbours in depth, else across
// it. Lines of 16-byte chunks, permuted so that neither ldmatrix nor 16-byte reads meet bank conflicts.
template <typename T, int SIZE, bool ALONG> struct Operand {
  static constexpr int DEPTH = 64 / sizeof(T), VEC = 16 / sizeof(T), LINE = ALONG ? 4 : SIZE / VEC;
  static constexpr u32 BYTES = SIZE * 64;

  static __device__ __forceinline__ u32 at(int line, int chunk) {
    return (line * LINE + (chunk ^ (ALONG ? (line >> 1) & 3 : line & 7))) * 16;
  }

  // From line `line` and column `column` on of a matrix that has lines [first, end) and `columns` columns; zeros where it
  // has nothing.
  static __device__ __forceinline__ void load(u32 to, const T* from, u32 ld, u32 line, u32 first, u32 end, u32 column,
                                              u32 columns) {
#pragma unroll
    for (int i = 0; i < SIZE / 64; ++i) {
      u32 c = threadIdx.x + THREADS * i, l = line + c / LINE, col = column + c % LINE * VEC;
      bool there = l >= first && l < end && col < columns;
      cp_async16(to + at(c / LINE, c % LINE), from + (there ? (u64)(l - first) * ld + col : 0), there ? 16 : 0);
    }
  }
};

// One product of a chain: `a` has rows [first, end), `b` all columns; ld are the elements from line to line.
template <typename T> struct Source {
  const T* a;
  const T* b;
  u32 lda, ldb, first, end, depth;
};

// The same as the host gives it.
struct Extra {
  const void* a;
  const void* b;
  u32 lda, ldb, first, end, depth, _pad;
};

// Where staged results are, in floats.
template <int SIZE> __device__ __forceinline__ int staged_at(int row, int column) {
  return row * SIZE + (((column >> 2) ^ ((row & 3) << 1)) << 2) + (column & 3);
}

// 16-bit types, on tensor cores: 2x4 warps of 64x32, or 4x2 of 16x32.
template <typename T, int SIZE, bool A_ALONG, bool B_ALONG> struct Tile {
  using A = Operand<T, SIZE, A_ALONG>;
  using B = Operand<T, SIZE, B_ALONG>;
  static constexpr int ROWS = SIZE == 128 ? 64 : 16, COLUMNS = 32, I = ROWS / 16, J = COLUMNS / 8, N_WARPS = SIZE / COLUMNS;
  static constexpr int CHAIN = 1 << 30;
  float d[I][J][4] = {};

  static __device__ __forceinline__ int row() { return threadIdx.x / 32 / N_WARPS * ROWS; }
  static __device__ __forceinline__ int column() { return threadIdx.x / 32 % N_WARPS * COLUMNS; }

  __device__ __forceinline__ void multiply(u32 sa, u32 sb) {
    const int lane = threadIdx.x & 31, m = row(), n = column();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      u32 a[I][4], b[J / 2][4];
#pragma unroll
      for (int i = 0; i < I; ++i) {
        if (A_ALONG)
          ldmatrix4(a[i], sa + A::at(m + 16 * i + (lane & 15), 2 * k + (lane >> 4)));
        else
          ldmatrix4_t(a[i], sa + A::at(16 * k + (lane & 7) + 8 * (lane >> 4), m / 8 + 2 * i + ((lane >> 3) & 1)));
      }
#pragma unroll
      for (int j = 0; j < J / 2; ++j) {
        if (B_ALONG)
          ldmatrix4(b[j], sb + B::at(n + 16 * j + (lane & 7) + 8 * (lane >> 4), 2 * k + ((lane >> 3) & 1)));
        else
          ldmatrix4_t(b[j], sb + B::at(16 * k + (lane & 15), n / 8 + 2 * j + (lane >> 4)));
      }
#pragma unroll
      for (int i = 0; i < I; ++i)
#pragma unroll
        for (int j = 0; j < J; ++j) mma16816<T>(d[i][j], a[i], b[j / 2][2 * (j & 1)], b[j / 2][2 * (j & 1) + 1]);
    }
  }

  __device__ __forceinline__ void close() {}

  __device__ __forceinline__ void stage(float* staged) const {
    const int lane = threadIdx.x & 31, m = row() + lane / 4, n = column() + 2 * (lane & 3);
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int j = 0; j < J; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          *(float2*)(staged + staged_at<SIZE>(m + 16 * i + 8 * h, n + 8 * j)) = make_float2(d[i][j][2 * h], d[i][j][2 * h + 1]);
  }
};

// Single precision, 4x4 elements a thread: a warp has 8 rows and all columns. Chains of 256 steps are added up, as on the CPU.
template <bool A_ALONG, bool B_ALONG> struct Tile<float, 64, A_ALONG, B_ALONG> {
  using A = Operand<float, 64, A_ALONG>;
  using B = Operand<float, 64, B_ALONG>;
  static constexpr int CHAIN = 256 / A::DEPTH;
  float d[4][4] = {}, sum[4][4] = {};

  static __device__ __forceinline__ int row() { return threadIdx.x / 32 * 8; }
  static __device__ __forceinline__ int column() { return 0; }

  __device__ __forceinline__ void multiply(u32 sa, u32 sb) {
    const int m = threadIdx.x / 16 * 4, n = threadIdx.x & 15;
#pragma unroll
    for (int k = 0; k < A::DEPTH; k += 4) {
      // [row][step] or [step][row].
      float a[4][4], b[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        read(a[i], sa + (A_ALONG ? A::at(m + i, k / 4) : A::at(k + i, m / 4)));
        read(b[i], sb + (B_ALONG ? B::at(n + 16 * i, k / 4) : B::at(k + i, n)));
      }
#pragma unroll
      for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) d[i][j] = fmaf(A_ALONG ? a[i][s] : a[s][i], B_ALONG ? b[j][s] : b[s][j], d[i][j]);
    }
  }

  static __device__ __forceinline__ void read(float (&v)[4], u32 at) {
    asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3]) : "r"(at) : "memory");
  }

  __device__ __forceinline__ void close() {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] += d[i][j], d[i][j] = 0.0f;
  }

  __device__ __forceinline__ void stage(float* staged) const {
    const int m = threadIdx.x / 16 * 4, n = threadIdx.x & 15;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) staged[staged_at<64>(m + i, B_ALONG ? n + 16 * j : 4 * n + j)] = sum[i][j];
  }
};

extern __shared__ __align__(128) unsigned char shared[];

// The tile at (m0, n0) of A B, `m` x `n`, and of what `extra` adds to it, in shared memory for the whole block to read.
// Extras whose rows the tile has none of are left out: they would add exact zeros.
template <typename T, int SIZE, bool A_ALONG, bool B_ALONG>
__device__ __forceinline__ const float* product(Source<T> source, const Extra* extra, u32 extras, u32 m0, u32 n0, u32 m, u32 n) {
  using Tile = Tile<T, SIZE, A_ALONG, B_ALONG>;
  using A = typename Tile::A;
  using B = typename Tile::B;
  constexpr u32 DEPTH = A::DEPTH, STAGE = A::BYTES + B::BYTES;
  const u32 base = smem_u32(shared);
  auto meets = [&](const Extra& e) { return e.first < m0 + SIZE && e.end > m0; };
  const u32 first = (source.depth + DEPTH - 1) / DEPTH;
  u32 tiles = first;
  for (u32 e = 0; e < extras; ++e)
    if (meets(extra[e])) tiles += (extra[e].depth + DEPTH - 1) / DEPTH;

  u32 at = 0, next = 0;
  auto load = [&](u32 stage) {
    if (at >= source.depth) {
      while (!meets(extra[next])) ++next;
      const Extra e = extra[next++];
      source = {(const T*)e.a, (const T*)e.b, e.lda, e.ldb, e.first, e.end, e.depth};
      at = 0;
    }
    const u32 to = base + stage * STAGE;
    if (A_ALONG)
      A::load(to, source.a, source.lda, m0, source.first, source.end, at, source.depth);
    else
      A::load(to, source.a, source.lda, at, 0, source.depth, m0, source.lda);
    if (B_ALONG)
      B::load(to + A::BYTES, source.b, source.ldb, n0, 0, n, at, source.depth);
    else
      B::load(to + A::BYTES, source.b, source.ldb, at, 0, source.depth, n0, source.ldb);
    at += DEPTH;
  };
#pragma unroll
  for (u32 s = 0; s < STAGES - 1; ++s) {
    if (s < tiles) load(s);
    cp_async_commit();
  }
  Tile tile;
  // Warps of a ragged edge have nothing to do.
  const bool live = m0 + Tile::row() < m && n0 + Tile::column() < n;
  for (u32 k = 0; k < tiles; ++k) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (k + STAGES - 1 < tiles) load((k + STAGES - 1) % STAGES);
    cp_async_commit();
    const u32 sa = base + k % STAGES * STAGE;
    if (live) tile.multiply(sa, sa + A::BYTES);
    if (k < first && ((k + 1) % Tile::CHAIN == 0 || k + 1 == first)) tile.close();
  }
  tile.close();
  cp_async_wait<0>();
  __syncthreads();
  if (live) tile.stage((float*)shared);
  __syncthreads();
  return (const float*)shared;
}
