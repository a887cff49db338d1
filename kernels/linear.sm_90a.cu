// Linear layers on Hopper: see src/ops/linear/cuda/hopper.rs.
//
//   linear_wgmma_nt_*   y = then(s (x W^T + t B^T) + b)
//   linear_wgmma_nn_*   the same with W and B as they are stored, [depth, columns]: dx = dy W + u A
//
// A launch does a list of such products. One block per multiprocessor walks the tiles of all of them: 128 rows, which two warp
// groups share, and as many columns as the entry's name says. Every element is one chain of products of 16 in depth, in
// order, whatever the tile, the row in it, and the rest of the list. t B^T is further stages of the same chain.
#include "common/math.cuh"
#include "common/pipeline.cuh"
// shared linear_wgmma_*_64 182272
// shared linear_wgmma_*_192 231424
// shared linear_wgmma_*_256 231424
// shared linear_wgmma_*_192_s3 190464
// shared linear_wgmma_*_192_s5 223232
// shared linear_wgmma_*_256_s3 214528
// hot linear_*

constexpr int MOST = 24, ROWS = 128, GROUPS = ROWS / BOX;

enum Kind : u32 { NOTHING, SIGMOID, GELU_ERF, ADD, ADD_GATED, NORMALISE, GELU_BACKWARD };

// `aux` is what a result is combined with, or where the first `kept` rows of what an activation or a norm is given go.
struct Problem {
  TensorMap x, w, t, b, y, aux;
  const float* bias;
  // ADD_GATED: of the first sample.
  const void* gate;
  // NORMALISE: of the columns of a head, and where 1/rms of each row and head goes.
  const float* weight;
  float* inverse;
  // Of the first of a bundle: how many have its `x` and are as wide, and the number of the tile behind their last.
  u32 bundle, end;
  u32 m, n, steps, extra_steps, kind, kept, per_sample, gate_stride;
  float scale, eps;
  // SIGMOID: v sigmoid(v (linear + cubic v^2)); GELU_BACKWARD: as its forward.
  float linear, cubic;
  u32 _pad[10];
};

struct Products {
  Problem problems[MOST];
  // `group`: so many rows of tiles are walked column by column, so that what they read is in the second-level cache.
  u32 tiles, group, _pad[14];
};

// This block's tiles, one after the other.
template <int N> struct Walk {
  const Products& all;
  const Problem *head, *p;
  u32 tile, first;
  int m0, n0;

  __device__ __forceinline__ Walk(const Products& all) : all(all), head(all.problems), tile(blockIdx.x), first(0) {}
  // Whether there is a tile, and which: problem, first row, first column.
  __device__ __forceinline__ bool find() {
    if (tile >= all.tiles) return false;
    for (; tile >= head->end; head += head->bundle) first = head->end;
    // The columns of all of a bundle lie side by side.
    const u32 here = tile - first, columns = (head->n + N - 1) / N, across = columns * head->bundle;
    const u32 top = here / (all.group * across) * all.group, height = min(all.group, (head->m + ROWS - 1) / ROWS - top);
    const u32 in_group = here - top * across, column = in_group / height, of = column / columns;
    m0 = (top + in_group - column * height) * ROWS;
    n0 = (column - of * columns) * N;
    p = head + of;
    tile += gridDim.x;
    return true;
  }
};

__device__ __forceinline__ float2 unpack2(u32 v, f16) { return __half22float2(*(const __half2*)&v); }
__device__ __forceinline__ float2 unpack2(u32 v, bf16) { return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xFFFF0000u)); }
// sigmoid(v (linear + cubic v^2)), the factors given times -log2 e
__device__ __forceinline__ float sigmoid_of(float v, float linear, float cubic) { return rcp(1.0f + ex2(v * fmaf(cubic, v * v, linear))); }
// v Phi(v)
__device__ __forceinline__ float gelu_erf(float v) {
  return 0.5f * v * (1.0f + erf_by(v * 0.70710678f, [](float v) { return ex2(1.44269504f * v); }));
}

// A box of results in registers: v[4 i + 2 h + j] is row 8 h, column 8 i + j from this thread's first on.
constexpr int HELD = BOX / 2;

template <typename T> __device__ __forceinline__ void store_box(u32 box, u32 row, u32 quad, const float (&v)[HELD]) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) store_shared(box + swizzled(row + 8 * h, i) + 4 * quad, pack2<T>(v[4 * i + 2 * h], v[4 * i + 2 * h + 1]));
}

// f(v0, v1, what lies there in the box, i, h) of each pair of columns.
template <typename T, typename F> __device__ __forceinline__ void combine_box(u32 box, u32 row, u32 quad, float (&v)[HELD], F f) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h)
      f(v[4 * i + 2 * h], v[4 * i + 2 * h + 1], unpack2(load_shared(box + swizzled(row + 8 * h, i) + 4 * quad), T()), i, h);
}

// What becomes of 64 rows from row `m0` on and N columns from `n0` on.
template <typename T, int N, bool BACKWARD> struct Finish {
  const Problem& p;
  const u32 quad, row;
  const int m0, n0;
  const T* gates[2];
  // Of the next box: fetched while there is something else to do, the gate where there are registers for it.
  float2 bias[8];
  u32 gate[2][8];
  static constexpr bool GATE_AHEAD = N < 256;

  __device__ __forceinline__ Finish(const Problem& p, int m0, int n0)
      : p(p), quad(threadIdx.x % 4), row(threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4), m0(m0), n0(n0), gates{}, bias{}, gate{} {
    if (!BACKWARD && p.kind == ADD_GATED) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const u32 sample = min(m0 + row + 8 * h, p.m - 1) / p.per_sample;
        gates[h] = (const T*)p.gate + (u64)sample * p.gate_stride;
      }
    }
    fetch(n0);
  }

  // For the box from column `n` on. Rows are of a multiple of 8, so that both of a pair are there or none.
  __device__ __forceinline__ void fetch(int n) {
    const int column = n + 2 * quad;
    if (p.bias) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        bias[i] = make_float2(0.0f, 0.0f);
        if (column + 8 * i < (int)p.n) bias[i] = *(const float2*)(p.bias + column + 8 * i);
      }
    }
    if (GATE_AHEAD) fetch_gate(n);
  }
  __device__ __forceinline__ void fetch_gate(int n) {
    const int column = n + 2 * quad;
    if (!BACKWARD && p.kind == ADD_GATED) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          gate[h][i] = 0;
          if (column + 8 * i < (int)p.n) gate[h][i] = *(const u32*)(gates[h] + column + 8 * i);
        }
    }
  }

  template <int SLOTS> __device__ __forceinline__ void run(const float (&d)[N / 2], Slots<SLOTS>& slots) {
#pragma unroll 1
    for (int c = 0; c < N / (int)BOX && n0 + c * (int)BOX < (int)p.n; ++c) {
      float v[HELD];
#pragma unroll
      for (int i = 0; i < N / (int)BOX; ++i)
        if (c == i) {
          // Keeps this a branch: else there are selects of all boxes.
          asm volatile("" ::: "memory");
#pragma unroll
          for (int j = 0; j < HELD; ++j) v[j] = d[HELD * i + j];
        }
      box(v, n0 + c * BOX, slots);
    }
  }

 private:
  // Of the box from column `n` on.
  template <int SLOTS> __device__ __forceinline__ void box(float (&v)[HELD], int n, Slots<SLOTS>& slots) {
    if (p.scale != 1.0f) {
#pragma unroll
      for (int i = 0; i < HELD; ++i) v[i] *= p.scale;
    }
    if (p.bias) {
#pragma unroll
      for (int i = 0; i < 8; ++i) v[4 * i] += bias[i].x, v[4 * i + 1] += bias[i].y, v[4 * i + 2] += bias[i].x, v[4 * i + 3] += bias[i].y;
    }
    if (!BACKWARD && m0 < (int)p.kept) {
      store_box<T>(slots.take(), row, quad, v);
      slots.put();
    }
    const u32 at = slots.take();
    if (p.kind == ADD) {
      combine_box<T>(at, row, quad, v, [](float& v0, float& v1, float2 r, int, int) { v0 += r.x, v1 += r.y; });
    } else if (BACKWARD) {
      if (p.kind == GELU_BACKWARD) {
        const float linear = p.linear, cubic = p.cubic;
        auto slope = [&](float h) {
          const float s = sigmoid_of(h, linear, cubic), inner = h * fmaf(3.0f * cubic, h * h, linear) * -0.69314718f;
          return fmaf(s * (1.0f - s), inner, s);
        };
        combine_box<T>(at, row, quad, v, [&](float& v0, float& v1, float2 h, int, int) { v0 *= slope(h.x), v1 *= slope(h.y); });
      }
    } else if (p.kind == SIGMOID) {
      const float linear = p.linear, cubic = p.cubic;
#pragma unroll
      for (int i = 0; i < HELD; ++i) v[i] *= sigmoid_of(v[i], linear, cubic);
    } else if (p.kind == GELU_ERF) {
#pragma unroll
      for (int i = 0; i < HELD; ++i) v[i] = gelu_erf(v[i]);
    } else if (p.kind == ADD_GATED) {
      if (!GATE_AHEAD) fetch_gate(n);
      combine_box<T>(at, row, quad, v, [&](float& v0, float& v1, float2 r, int i, int h) {
        const float2 g = unpack2(gate[h][i], T());
        v0 = r.x + g.x * v0, v1 = r.y + g.y * v1;
      });
    } else if (p.kind == NORMALISE) {
      // Of what is kept: as it is stored.
#pragma unroll
      for (int i = 0; i < HELD; i += 2) {
        const float2 stored = unpack2(pack2<T>(v[i], v[i + 1]), T());
        v[i] = stored.x, v[i + 1] = stored.y;
      }
      float inverse[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(v[4 * i + 2 * h], v[4 * i + 2 * h], fmaf(v[4 * i + 2 * h + 1], v[4 * i + 2 * h + 1], sum));
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
        inverse[h] = __fdiv_rn(1.0f, __fsqrt_rn(sum / BOX + p.eps));
        const u32 r = m0 + row + 8 * h;
        if (p.inverse && quad == 0 && r < p.kept) p.inverse[(u64)r * (p.n / BOX) + n / BOX] = inverse[h];
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 w = *(const float2*)(p.weight + 8 * i + 2 * quad);
        // In this order everywhere.
        v[4 * i] = v[4 * i] * inverse[0] * w.x, v[4 * i + 1] = v[4 * i + 1] * inverse[0] * w.y;
        v[4 * i + 2] = v[4 * i + 2] * inverse[1] * w.x, v[4 * i + 3] = v[4 * i + 3] * inverse[1] * w.y;
      }
    }
    fetch(n + BOX);
    store_box<T>(at, row, quad, v);
    slots.put();
  }
};

extern __shared__ unsigned char raw[];

template <typename T, int N, bool ACROSS, int STAGES, int SLOTS> __device__ __forceinline__ void linear(const Products& all) {
  constexpr u32 A_BYTES = ROWS * 128, BYTES = A_BYTES + N * 128;
  using Operands = Ring<STAGES, BYTES>;
  using Boxes = Slots<SLOTS>;
  const u32 stages = (smem_u32(raw) + 1023) & ~1023u, boxes = stages + STAGES * BYTES, notes = boxes + GROUPS * SLOTS * BOX_BYTES;
  const u32 barriers = notes + GROUPS * Boxes::NOTES, box_barriers = barriers + Operands::BARRIERS;
  const u32 group = threadIdx.x / GROUP;
  if (threadIdx.x == 0) {
    prefetch_map(&all.problems[0].x);
    prefetch_map(&all.problems[0].w);
    Operands::init(barriers, GROUPS * GROUP / 32);
    for (int g = 0; g < GROUPS; ++g) Boxes::init(box_barriers + g * Boxes::BARRIERS);
    barrier_init_fence();
  }
  __syncthreads();
  Walk<N> walk(all);
  Operands ring(stages, barriers);
  const u32 mine = group == 0 ? threadIdx.x / 32 - 1 : group - 1;
  Boxes slots(boxes + mine * SLOTS * BOX_BYTES, box_barriers + mine * Boxes::BARRIERS);
  if (group == 0) {
    registers_give<40>();
    if (threadIdx.x == 0) {
#pragma unroll 1
      while (walk.find()) {
        const Problem& p = *walk.p;
        const int steps = p.steps + p.extra_steps;
#pragma unroll 1
        for (int k = 0; k < steps; ++k) {
          const bool extra = k >= (int)p.steps;
          const int depth = (extra ? k - (int)p.steps : k) * 64;
          const TensorMap* w = extra ? &p.b : &p.w;
          const u32 at = ring.claim();
          tma_load(at, extra ? &p.t : &p.x, ring.full(), depth, walk.m0);
          if (ACROSS) {
#pragma unroll
            for (int i = 0; i < N / (int)BOX; ++i) tma_load(at + A_BYTES + i * BOX_BYTES, w, ring.full(), walk.n0 + i * (int)BOX, depth);
          } else {
            tma_load(at + A_BYTES, w, ring.full(), depth, walk.n0);
          }
          ring.next();
        }
      }
    } else if (threadIdx.x % 32 == 0 && mine < GROUPS) {
      Keeper<SLOTS> keeper(slots, notes + mine * Boxes::NOTES);
#pragma unroll 1
      while (walk.find()) {
        const Problem& p = *walk.p;
        const int m0 = walk.m0 + mine * BOX;
        const bool keeps = m0 < (int)p.kept, reads = p.kind == ADD || p.kind == ADD_GATED || p.kind == GELU_BACKWARD;
#pragma unroll 1
        for (int n = walk.n0; n < min(walk.n0 + N, (int)p.n); n += BOX) {
          // One use in the text, so that there is one copy of it.
#pragma unroll 1
          for (int use = keeps ? 0 : 1; use < 2; ++use) keeper.hand(use ? &p.y : &p.aux, use && reads ? &p.aux : nullptr, n, m0);
        }
      }
      keeper.finish();
    }
    return;
  }
  registers_take<232>();
#pragma unroll 1
  while (walk.find()) {
    const Problem& p = *walk.p;
    Finish<T, N, ACROSS> finish(p, walk.m0 + mine * BOX, walk.n0);
    float d[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] = 0.0f;
    multiply<T, N, ACROSS>(d, ring, mine * BOX_BYTES, A_BYTES, p.steps + p.extra_steps);
    finish.run(d, slots);
  }
}

#define LINEAR(NAME, T, N, ACROSS, STAGES, SLOTS)                                                                       \
  extern "C" __global__ void __launch_bounds__(384, 1) linear_wgmma_##NAME(const __grid_constant__ Products all) {      \
    linear<T, N, ACROSS, STAGES, SLOTS>(all);                                                                           \
  }
#define OF_TYPE(T, t)                                                                                                   \
  LINEAR(nt_##t##_64, T, 64, false, 6, 2)                                                                               \
  LINEAR(nn_##t##_64, T, 64, true, 6, 2)                                                                                \
  LINEAR(nt_##t##_192, T, 192, false, 4, 4)                                                                             \
  LINEAR(nn_##t##_192, T, 192, true, 4, 4)                                                                              \
  LINEAR(nt_##t##_256, T, 256, false, 4, 2)                                                                             \
  LINEAR(nn_##t##_256, T, 256, true, 4, 2)
OF_TYPE(bf16, bf16)
// Other stages, to be compared.
LINEAR(nt_bf16_192_s3, bf16, 192, false, 3, 4)
LINEAR(nt_bf16_192_s5, bf16, 192, false, 5, 1)
LINEAR(nt_bf16_256_s3, bf16, 256, false, 3, 4)
OF_TYPE(f16, f16)
