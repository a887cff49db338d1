// Linear layers with low-rank additions, forward and backward: see src/ops/linear.
//
//   linear_nt   then(x W^T + b + sum of t B^T): the additions are further steps of the same chains, t = s x A^T of the rows of theirs
//   linear_nn   dx = dy W + sum of u A: W as it is stored
//   linear_tn   dB = dy^T t and dA = u^T x, over chunks of the rows
//   linear_sum  adds the chunks up, in order, to the gradients that are there
//   linear_pack matrices in another type, rows and columns filled up with zeros
//   linear_merge W + s B A
#include "common/activations.cuh"
#include "common/elementwise.cuh"
#include "common/gemm.cuh"
#include "common/operand.cuh"
#include "common/tf32.cuh"
// shared linear_nt_*_64 32768
// shared linear_nn_*_64 32768
// shared linear_tn_*_64 32768
// shared linear_nt_*_128 65536
// shared linear_nn_*_128 65536
// hot linear_*

constexpr int PROBLEMS = 16;

// y = then(scale (x W' + extras) + bias) with x [m, k], W' [k, n], of the rows from `begin` on; ld are the elements from line to
// line. No row of a tile is without an extra that others have: what is not finite in that stays with those.
struct Problem {
  const void* x;
  const void* w;
  const float* bias;
  void* y;
  u32 begin, m, n, k, ldx, ldw, first_extra, extras;
  float scale;
  u32 _pad;
};

enum Kind : u32 { NOTHING, GELU_TANH, GELU_ERF, QUICK_GELU, SILU, ADD, ADD_GATED, THROUGH_GELU };

// What is done to the result, of numbers of `type`. The first `kept` rows of what an activation is given go to `hidden`; what
// goes back through one reads that as `residual`.
struct Then {
  void* hidden;
  const void* residual;
  const void* gate;
  u32 kept, per_sample, gate_stride, kind, type, tiles;
};

struct Products {
  Problem problems[PROBLEMS];
  Then then;
};

// V neighbouring elements of a row, to the end.
template <typename T, int V> __device__ __forceinline__ void finish(const Problem& p, const Then& then, u32 row, u32 column, float (&v)[V]) {
  using P = Pack<T, V>;
  const u64 at = (u64)row * p.n + column;
#pragma unroll
  for (int i = 0; i < V; ++i) v[i] *= p.scale;
  if (p.bias) {
    const auto b = *(const Pack<float, V>*)(p.bias + column);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] += b.v[i];
  }
  auto store = [&](void* to) {
    P out;
#pragma unroll
    for (int i = 0; i < V; ++i) out.v[i] = narrow<T>(v[i]);
    *(P*)((T*)to + at) = out;
  };
  if (row < then.kept) store(then.hidden);
  switch (then.kind) {
  case GELU_TANH:
  case QUICK_GELU:
  case SILU:
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float tanh = GeluTanh::inner(v[i]), quick = QuickGelu::inner(v[i]);
      v[i] *= sigmoid(then.kind == GELU_TANH ? tanh : then.kind == QUICK_GELU ? quick : Silu::inner(v[i]));
    }
    break;
  case GELU_ERF:
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = GeluErf::of(v[i]);
    break;
  case ADD: {
    const P r = *(const P*)((const T*)then.residual + at);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] += widen(r.v[i]);
    break;
  }
  case THROUGH_GELU: {
    const P h = *(const P*)((const T*)then.residual + at);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] *= GeluTanh::slope(widen(h.v[i]));
    break;
  }
  case ADD_GATED: {
    const P r = *(const P*)((const T*)then.residual + at);
    const P g = *(const P*)((const T*)then.gate + (u64)(row / then.per_sample) * then.gate_stride + column);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = widen(r.v[i]) + widen(g.v[i]) * v[i];
    break;
  }
  }
  store(p.y);
}

template <typename T, int SIZE>
__device__ __forceinline__ void finish(const float* staged, const Problem& p, const Then& then, u32 m0, u32 n0) {
  constexpr int V = 4;
  const bool packs = p.n % V == 0 && then.gate_stride % V == 0 && are_aligned(p.y, p.bias, then.hidden, then.residual, then.gate);
#pragma unroll 1
  for (u32 i = threadIdx.x; i < SIZE * SIZE / V; i += THREADS) {
    const u32 r = i / (SIZE / V), c = i % (SIZE / V) * V, row = m0 + r, column = n0 + c;
    if (row >= p.m || column >= p.n) continue;
    const float* at = staged + staged_at<SIZE>(r, c);
    if (packs) {
      const float4 f = *(const float4*)at;
      float v[V] = {f.x, f.y, f.z, f.w};
      finish<T, V>(p, then, row, column, v);
    } else {
#pragma unroll 1
      for (u32 j = 0; j < V && column + j < p.n; ++j) {
        float v[1] = {at[j]};
        finish<T, 1>(p, then, row, column + j, v);
      }
    }
  }
}

// Blocks: (problems x then.tiles tiles of columns, tiles of rows).
template <typename T, int SIZE, bool W_ALONG> __device__ __forceinline__ void linear(const Products& a, const Extra* extra) {
  const Problem& p = a.problems[blockIdx.x / a.then.tiles];
  const u32 m0 = p.begin + blockIdx.y * SIZE, n0 = blockIdx.x % a.then.tiles * SIZE;
  if (m0 >= p.m || n0 >= p.n) return;
  const Source<T> source = {(const T*)p.x, (const T*)p.w, p.ldx, p.ldw, 0, p.m, p.k};
  const float* staged = product<T, SIZE, true, W_ALONG>(source, extra + p.first_extra, p.extras, m0, n0, p.m, p.n);
  // Of the halves, products give their own type or f32; of tf32, any.
  if (a.then.type == F32)
    finish<float, SIZE>(staged, p, a.then, m0, n0);
  else if constexpr (sizeof(T) == 2)
    finish<T, SIZE>(staged, p, a.then, m0, n0);
  else if (a.then.type == F16)
    finish<f16, SIZE>(staged, p, a.then, m0, n0);
  else
    finish<bf16, SIZE>(staged, p, a.then, m0, n0);
}

#define LINEAR(T, t, SIZE, BLOCKS)                                                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                         \
      linear_nt_##t##_##SIZE(const __grid_constant__ Products a, const Extra* extra) {                                  \
    linear<T, SIZE, true>(a, extra);                                                                                    \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                         \
      linear_nn_##t##_##SIZE(const __grid_constant__ Products a, const Extra* extra) {                                  \
    linear<T, SIZE, false>(a, extra);                                                                                   \
  }
LINEAR(float, f32, 64, 2)
LINEAR(tf32, tf32, 64, 4)
LINEAR(tf32, tf32, 128, 2)
LINEAR(f16, f16, 64, 4)
LINEAR(bf16, bf16, 64, 4)
LINEAR(f16, f16, 128, 2)
LINEAR(bf16, bf16, 128, 2)

// a^T b with a [rows, m], b [rows, n]: one result for every chunk of rows.
struct Gradient {
  const void* a;
  const void* b;
  float* out;
  u32 m, n, lda, ldb;
};
struct Gradients {
  Gradient of[2];
  u32 rows, chunk, chunks, _pad;
};

// Blocks: (tiles of columns, tiles of rows, products x chunks).
template <typename T, int SIZE> __device__ __forceinline__ void gradients(const Gradients& g) {
  const Gradient& p = g.of[blockIdx.z / g.chunks];
  const u32 m0 = blockIdx.y * SIZE, n0 = blockIdx.x * SIZE, chunk = blockIdx.z % g.chunks, first = chunk * g.chunk;
  if (m0 >= p.m || n0 >= p.n) return;
  const T *a = (const T*)p.a + (u64)first * p.lda, *b = (const T*)p.b + (u64)first * p.ldb;
  const Source<T> source = {a, b, p.lda, p.ldb, 0, p.lda, min(g.chunk, g.rows - first)};
  const float* staged = product<T, SIZE, false, false>(source, nullptr, 0, m0, n0, p.m, p.n);
  float* out = p.out + (u64)chunk * p.m * p.n;
  for (u32 i = threadIdx.x; i < SIZE * SIZE; i += THREADS) {
    const u32 r = i / SIZE, c = i % SIZE;
    if (m0 + r < p.m && n0 + c < p.n) out[(u64)(m0 + r) * p.n + n0 + c] = staged[staged_at<SIZE>(r, c)];
  }
}

#define GRADIENTS(T, t, BLOCKS)                                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                         \
      linear_tn_##t##_64(const __grid_constant__ Gradients g) {                                                         \
    gradients<T, 64>(g);                                                                                                \
  }
GRADIENTS(float, f32, 2)
GRADIENTS(f16, f16, 4)
GRADIENTS(bf16, bf16, 4)

// to[i] += sum over chunks of from[chunk][i], of n numbers.
struct Sum {
  float* to;
  const float* from;
  u32 n, chunks;
};
struct Sums {
  Sum of[32];
};

// Blocks: (numbers, sums).
extern "C" __global__ void linear_sum(const __grid_constant__ Sums sums) {
  const Sum& s = sums.of[blockIdx.y];
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= s.n) return;
  float sum = 0.0f;
#pragma unroll 4
  for (u32 c = 0; c < s.chunks; ++c) sum += s.from[(u64)c * s.n + i];
  s.to[i] += sum;
}

// A matrix [rows, columns] of `type`, to one of `to_rows` lines of `to_columns`.
struct Packing {
  const void* from;
  void* to;
  u32 rows, columns, to_rows, to_columns, type, _pad;
};

template <typename T, typename S, int V>
__device__ __forceinline__ void pack(const Packing& p, u32 row, u32 column) {
  const S* from = (const S*)p.from + (u64)row * p.columns + column;
  T* to = (T*)p.to + (u64)row * p.to_columns + column;
  Pack<T, V> out;
  if (row < p.rows && p.columns % V == 0 && column < p.columns && are_aligned(from)) {
    constexpr int N = 16 / sizeof(S) < V ? 16 / sizeof(S) : V;
#pragma unroll
    for (int i = 0; i < V; i += N) {
      const auto in = *(const Pack<S, N>*)(from + i);
#pragma unroll
      for (int j = 0; j < N; ++j) out.v[i + j] = narrow<T>(widen(in.v[j]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) out.v[i] = narrow<T>(row < p.rows && column + i < p.columns ? widen(from[i]) : 0.0f);
  }
  if (p.to_columns % V == 0) {
    *(Pack<T, V>*)to = out;
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (column + i < p.to_columns) to[i] = out.v[i];
  }
}

// Blocks: (16 bytes of the result a thread, 1, matrices).
template <typename T> __device__ __forceinline__ void pack(const Packing* all) {
  constexpr int V = 16 / sizeof(T);
  const Packing p = all[blockIdx.z];
  const u32 line = (p.to_columns + V - 1) / V;
  const u64 i = global_thread(), row = i / line;
  const u32 column = (i - row * line) * V;
  if (row >= p.to_rows) return;
  if (p.type == F32)
    pack<T, float, V>(p, row, column);
  else if (p.type == F16)
    pack<T, f16, V>(p, row, column);
  else
    pack<T, bf16, V>(p, row, column);
}

#define PACK(T, t)                                                                                                      \
  extern "C" __global__ void linear_pack_##t(const Packing* all) { pack<T>(all); }                                      \
  extern "C" __global__ void linear_merge_##t(T* out, const T* w, const float* a, const float* b, float scale,          \
                                              u32 inputs, u32 rank) {                                                   \
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x, o = blockIdx.y;                                                \
    if (i >= inputs) return;                                                                                            \
    float sum = 0.0f;                                                                                                   \
    for (u32 r = 0; r < rank; ++r) sum = fmaf(b[o * rank + r], a[(u64)r * inputs + i], sum);                            \
    out[(u64)o * inputs + i] = narrow<T>(widen(w[(u64)o * inputs + i]) + scale * sum);                                  \
  }
FOR_EACH_TYPE(PACK)
