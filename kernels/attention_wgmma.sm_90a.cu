// Softmax attention by products of warp groups, forward: see src/ops/attention. A block takes tiles of queries in turn, each of
// one head and sample. One thread fetches; each of the other warp groups has 64 queries, of whatever part, and goes through all
// keys in order, so that a row's bits depend on nothing but the row and its keys. Columns beyond the first 64 lie in a panel of
// their own, since swizzled rows have at most 128 bytes.
// shared attention_wgmma_forward_*_d64 148592
// shared attention_wgmma_forward_*_d80 164976
// shared attention_wgmma_forward_*_d96 197744
// shared attention_wgmma_forward_*_d128 197712
// shared attention_wgmma_masked_*_d64 99408
// shared attention_wgmma_masked_*_d128 197712
// shared attention_wgmma_*_192_s2_*_d64 115792
// shared attention_wgmma_*_192_s3_*_d64 148592
// shared attention_wgmma_*_128_s3_*_d64 132208
// shared attention_wgmma_*_128_s2_*_d128 197712
// hot attention_wgmma_*
#include "common/attention_wgmma.cuh"

extern __shared__ unsigned char shared[];

// In which order a warp group does things.
enum Form {
  SERIAL,   // scores, softmax, values
  OVERLAP,  // the next scores beside values, the softmax of the former beside the latter
  TURNS     // and groups issue products by turns, so that the exponentials of one run under the products of another
};

template <typename T, int D, int GROUPS, int STAGES, Form FORM, bool MASKED> struct Attention {
  static constexpr u32 OWN = 64 * 2 * D, KV = KEYS * 2 * D;  // bytes of a group's queries, and of keys or values of a stage
  static constexpr int WIDTH = D == 128 ? 128 : 64;          // columns of results that one product makes
  static constexpr int REST = D - WIDTH, W = 2 * (D - 64);   // the others, and bytes of a row of the second panel
  // Named barriers: of each group, and of each group's turn.
  static constexpr int OF_GROUP = 1, OF_TURN = 4;

  // Sums of values.
  struct Sums {
    float a[WIDTH / 2], b[REST ? REST / 2 : 1];
    __device__ __forceinline__ void settle_all() { settle(a), settle(b); }
    __device__ __forceinline__ void clear() {
#pragma unroll
      for (int i = 0; i < WIDTH / 2; ++i) a[i] = 0.0f;
#pragma unroll
      for (int i = 0; i < (REST ? REST / 2 : 1); ++i) b[i] = 0.0f;
    }
  };

  const Operands<D>& s;
  float* lse;
  const float* bias;
  bool causal;
  u32 q, out, kv, barriers;

  __device__ __forceinline__ Attention(const Operands<D>& s, float* lse, const float* bias, u32 causal)
      : s(s), lse(lse), bias(MASKED ? bias : nullptr), causal(MASKED && causal) {
    q = (smem_u32(shared) + 1023) & ~1023u;
    out = q + GROUPS * OWN;
    kv = out + GROUPS * OWN;
    barriers = kv + STAGES * 2 * KV;
  }
  __device__ __forceinline__ u32 queries_full() const { return barriers; }
  __device__ __forceinline__ u32 queries_free() const { return barriers + 8; }
  __device__ __forceinline__ u32 keys_full(u32 i) const { return barriers + 16 + 32 * i; }
  __device__ __forceinline__ u32 keys_free(u32 i) const { return barriers + 24 + 32 * i; }
  __device__ __forceinline__ u32 values_full(u32 i) const { return barriers + 32 + 32 * i; }
  __device__ __forceinline__ u32 values_free(u32 i) const { return barriers + 40 + 32 * i; }
  __device__ __forceinline__ u32 keys_at(u32 i) const { return kv + i * 2 * KV; }
  __device__ __forceinline__ u32 values_at(u32 i) const { return kv + i * 2 * KV + KV; }

  __device__ __forceinline__ void run() const {
    if (threadIdx.x == 0) {
      barrier_init(queries_full(), 1);
      barrier_init(queries_free(), 4 * GROUPS);
#pragma unroll 1
      for (u32 i = 0; i < STAGES; ++i) {
        barrier_init(keys_full(i), 1);
        barrier_init(keys_free(i), 4 * GROUPS);
        barrier_init(values_full(i), 1);
        barrier_init(values_free(i), 4 * GROUPS);
      }
      barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
      registers_give<GROUPS == 3 ? 32 : 24>();
      if (threadIdx.x == 0) fetch_all();
    } else {
      registers_take<GROUPS == 3 ? 160 : 240>();
      attend_all();
    }
  }

  // Keys of these queries end before this token.
  __device__ __forceinline__ u32 seen(const Place& tile) const { return causal ? (tile.first + GROUPS) * 64 : 0xffffffffu; }

  // ---- the thread that fetches ----

  __device__ __forceinline__ void fetch(u32 to, u32 rows, const TensorMap* map, u32 barrier, const Place& tile, u32 row) const {
    tma_load(to, map, barrier, 0, tile.head, row, tile.sample);
    if (D > 64) tma_load(to + rows * 128, map + s.MAPS - 1, barrier, 64, tile.head, row, tile.sample);
  }

  __device__ __forceinline__ void fetch_all() const {
    Stage<STAGES> stage;
    u32 parity = 1;
#pragma unroll 1
    for (u32 index = blockIdx.x; index < s.tiles; index += gridDim.x, parity ^= 1) {
      const Place tile(s, index, GROUPS);
      const u32 rows = min(s.rows - tile.first, GROUPS);
      barrier_wait(queries_free(), parity);
      barrier_expect(queries_full(), rows * OWN);
#pragma unroll 1
      for (u32 g = 0; g < rows; ++g) {
        const Queries own(s, tile.first + g);
        fetch(q + g * OWN, 64, s.q[own.part], queries_full(), tile, own.row);
      }
#pragma unroll 1
      for (Keys keys; keys.exist(s, seen(tile)); keys.next(s), stage.next()) {
        barrier_wait(keys_free(stage.index), stage.parity ^ 1);
        barrier_expect(keys_full(stage.index), KV);
        fetch(keys_at(stage.index), KEYS, s.k[keys.part], keys_full(stage.index), tile, keys.row);
        barrier_wait(values_free(stage.index), stage.parity ^ 1);
        barrier_expect(values_full(stage.index), KV);
        fetch(values_at(stage.index), KEYS, s.v[keys.part], values_full(stage.index), tile, keys.row);
      }
    }
  }

  // ---- the groups ----

  // Gives a buffer back, once for each warp.
  __device__ __forceinline__ void release(u32 barrier) const {
    if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
  }
  __device__ __forceinline__ void begin_turn(u32 group) const {
    if (FORM == TURNS) named_sync(OF_TURN + group, 256);
  }
  __device__ __forceinline__ void end_turn(u32 group) const {
    if (FORM == TURNS) named_arrive(OF_TURN + (group + 1 == GROUPS ? 0 : group + 1), 256);
  }

  // Begins x = queries times keys.
  __device__ __forceinline__ void begin_scores(float (&x)[KEYS / 2], u32 own, u32 keys) const {
    const u32 a = place_of(own), b = place_of(keys);
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T, KEYS>::ss(x, rows_at<128>(a + 2 * k), rows_at<128>(b + 2 * k), k > 0);
    if constexpr (D > 64) {
#pragma unroll
      for (int k = 0; k < (D - 64) / 16; ++k)
        Wgmma<T, KEYS>::ss(x, rows_at<W>(a + 64 * 8 + 2 * k), rows_at<W>(b + KEYS * 8 + 2 * k));
    }
    wgmma_commit();
  }

  // Begins sums += p times values.
  __device__ __forceinline__ void begin_values(Sums& sums, const u32 (&p)[KEYS / 16][4], u32 values) const {
    const u32 a = place_of(values, KEYS * 128);
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
      Wgmma<T, WIDTH>::template rs<1>(sums.a, p[k], rows_at<128>(a + k * 128));
      if constexpr (REST > 0) Wgmma<T, REST>::template rs<1>(sums.b, p[k], rows_at<W>(a + KEYS * 8 + k * W));
    }
    wgmma_commit();
  }

  // Scores become what a mask leaves of them: in units of which 2 is the base where there is a bias.
  __device__ __forceinline__ void mask(float (&x)[KEYS / 2], const Place& tile, u32 row, const Keys& keys) const {
    const u32 key = keys.row + threadIdx.x % 4 * 2, left = s.tokens[keys.part] - keys.row;
    if (bias) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float* of_row = bias + ((u64)tile.head * s.n + row + 8 * h) * s.n + key;
        const u32 count = row + 8 * h < s.n ? s.n - min(key, s.n) : 0;
#pragma unroll
        for (int i = 0; i < KEYS / 2; ++i)
          if ((i / 2 & 1) == h) {
            const u32 at = i / 4 * 8 + i % 2;
            x[i] = fmaf(at < count ? of_row[at] : 0.0f, LOG2_E, x[i] * s.scale * LOG2_E);
          }
      }
    }
    if (causal && keys.row + KEYS > row / 64 * 64) {
#pragma unroll
      for (int i = 0; i < KEYS / 2; ++i)
        if (key + i / 4 * 8 + i % 2 > row + (i / 2 & 1) * 8) x[i] = -infinity();
    }
    if (left < KEYS) {
#pragma unroll
      for (int i = 0; i < KEYS / 2; ++i)
        if (threadIdx.x % 4 * 2 + i / 4 * 8 + i % 2 >= left) x[i] = -infinity();
    }
  }

  // Scores become exponentials less the largest so far, and `factor` what older sums are to be multiplied with.
  __device__ __forceinline__ void exponentials(float (&x)[KEYS / 2], float (&most)[2], float (&total)[2], float (&factor)[2], float unit) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float now = most[h];
#pragma unroll
      for (int i = 2 * h; i < KEYS / 2; i += 4) now = fmaxf(now, fmaxf(x[i], x[i + 1]));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      const float shift = -now * unit;
      factor[h] = ex2(fmaf(most[h], unit, shift));
      most[h] = now;
      float even = 0.0f, odd = 0.0f;
#pragma unroll
      for (int i = 2 * h; i < KEYS / 2; i += 4) {
        even += x[i] = ex2(fmaf(x[i], unit, shift));
        odd += x[i + 1] = ex2(fmaf(x[i + 1], unit, shift));
      }
      total[h] = fmaf(total[h], factor[h], even + odd);
    }
  }

  // The accumulators of scores are as an A operand is.
  static __device__ __forceinline__ void pack(u32 (&p)[KEYS / 16][4], const float (&x)[KEYS / 2]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; ++i) p[i / 4][i % 4] = pack2<T>(x[2 * i], x[2 * i + 1]);
  }

  static __device__ __forceinline__ void multiply(Sums& sums, const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < WIDTH / 2; ++i) sums.a[i] *= factor[i / 2 & 1];
    if constexpr (REST > 0) {
#pragma unroll
      for (int i = 0; i < REST / 2; ++i) sums.b[i] *= factor[i / 2 & 1];
    }
  }

  __device__ __forceinline__ void attend_all() const {
    const u32 group = threadIdx.x / 128 - 1;
    Stage<STAGES> stage;
    u32 parity = 0;
    if (FORM == TURNS && group == 0) named_arrive(OF_TURN, 256);
#pragma unroll 1
    for (u32 index = blockIdx.x; index < s.tiles; index += gridDim.x, parity ^= 1) {
      const Place tile(s, index, GROUPS);
      barrier_wait(queries_full(), parity);
      if (tile.first + group < s.rows)
        attend(tile, group, stage);
      else
        stand_by(tile, group, stage);
    }
    if (group == 0) begin_turn(0);  // the one that nobody took
    if (threadIdx.x % 128 == 0) tma_wait_read<0>();
  }

  // What a group without queries does. Such groups are a block's last: where there are turns, they come after those of the
  // others, who have given back what lay in a stage before.
  __device__ __forceinline__ void stand_by(const Place& tile, u32 group, Stage<STAGES>& stage) const {
    release(queries_free());
    bool later = false;
#pragma unroll 1
    for (Keys keys; keys.exist(s, seen(tile)); keys.next(s), stage.next(), later = true) {
      if (FORM != TURNS) barrier_wait(keys_full(stage.index), stage.parity);
      release(keys_free(stage.index));
      if (later) begin_turn(group), end_turn(group);
      if (FORM != TURNS) barrier_wait(values_full(stage.index), stage.parity);
      release(values_free(stage.index));
    }
  }

  __device__ __forceinline__ void attend(const Place& tile, u32 group, Stage<STAGES>& stage) const {
    const Queries own(s, tile.first + group);
    const u32 at = q + group * OWN, row = own.row + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    const float unit = bias ? 1.0f : s.scale * LOG2_E;
    float most[2] = {-infinity(), -infinity()}, total[2] = {}, factor[2];
    Sums sums;
    sums.clear();
    u32 p[KEYS / 16][4];
    Keys keys;
    {
      float x[KEYS / 2];
      barrier_wait(keys_full(stage.index), stage.parity);
      wgmma_fence();
      begin_scores(x, at, keys_at(stage.index));
      wgmma_wait<0>();
      settle(x);
      sums.settle_all();
      release(keys_free(stage.index));
      mask(x, tile, row, keys);
      exponentials(x, most, total, factor, unit);
      pack(p, x);
    }
    barrier_wait(values_full(stage.index), stage.parity);
#pragma unroll 1
    for (keys.next(s); keys.exist(s, seen(tile)); keys.next(s)) {
      float x[KEYS / 2];
      const u32 values = values_at(stage.index), used = values_free(stage.index);
      if constexpr (FORM == SERIAL) {
        wgmma_fence();
        begin_values(sums, p, values);
        wgmma_wait<0>();
        sums.settle_all();
        release(used);
      }
      stage.next();
      barrier_wait(keys_full(stage.index), stage.parity);
      begin_turn(group);
      if (FORM != SERIAL) wgmma_fence();  // else since the last one nothing has touched scores
      begin_scores(x, at, keys_at(stage.index));
      if constexpr (FORM == SERIAL) {
        wgmma_wait<0>();
      } else {
        begin_values(sums, p, values);
        end_turn(group);
        wgmma_wait<1>();
      }
      settle(x);
      release(keys_free(stage.index));
      mask(x, tile, row, keys);
      exponentials(x, most, total, factor, unit);
      settle(x);
      // The loop in this keeps ptxas from waiting for the product with values before the exponentials.
      barrier_wait(values_full(stage.index), stage.parity);
      if constexpr (FORM != SERIAL) {
        wgmma_wait<0>();
        settle(x);
        sums.settle_all();
        release(used);
      }
      multiply(sums, factor);
      pack(p, x);
    }
    release(queries_free());
    wgmma_fence();
    begin_values(sums, p, values_at(stage.index));
    wgmma_wait<0>();
    sums.settle_all();
    release(values_free(stage.index));
    stage.next();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
      total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
      if (threadIdx.x % 4 == 0 && row + 8 * h < s.tokens[own.part])
        lse[((u64)tile.sample * s.heads + tile.head) * s.n + s.first[own.part] + row + 8 * h] = fmaf(most[h] * unit, LN_2, logf(total[h]));
      factor[h] = __fdiv_rn(1.0f, total[h]);
    }
    multiply(sums, factor);
    if (s.is_wide)
      store_wide(sums, tile, own, row);
    else
      store(sums, tile, own, group);
  }

  __device__ __forceinline__ void store(const Sums& sums, const Place& tile, const Queries& own, u32 group) const {
    const u32 at = out + group * OWN, r = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4, c = threadIdx.x % 4 * 4;
    const bool lead = threadIdx.x % 128 == 0;
    if (lead) tma_wait_read<0>();
    named_sync(OF_GROUP + group, 128);  // the last results have left
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int j = 0; j < WIDTH / 8; ++j)
        store_shared(at + j / 8 * 64 * 128 + swizzled_by<128>(r + 8 * h, j % 8) + c, pack2<T>(sums.a[4 * j + 2 * h], sums.a[4 * j + 2 * h + 1]));
      if constexpr (REST > 0) {
#pragma unroll
        for (int j = 0; j < REST / 8; ++j)
          store_shared(at + 64 * 128 + swizzled_by<W>(r + 8 * h, j) + c, pack2<T>(sums.b[4 * j + 2 * h], sums.b[4 * j + 2 * h + 1]));
      }
    }
    fence_async();
    named_sync(OF_GROUP + group, 128);
    if (lead) {
      const TensorMap* map = s.out[own.part];
      tma_store(map, at, 0, tile.head, own.row, tile.sample);
      if (D > 64) tma_store(map + s.MAPS - 1, at + 64 * 128, 64, tile.head, own.row, tile.sample);
      tma_commit();
    }
  }

  __device__ __forceinline__ void store_wide(const Sums& sums, const Place& tile, const Queries& own, u32 row) const {
    const u32 column = threadIdx.x % 4 * 2, n = s.tokens[own.part];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* to = s.wide[own.part] + (((u64)tile.sample * n + row + 8 * h) * s.heads + tile.head) * s.d + column;
      if (row + 8 * h >= n) continue;
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        const float* from = j < WIDTH / 8 ? sums.a + 4 * j + 2 * h : sums.b + 4 * (j - WIDTH / 8) + 2 * h;
        if (j * 8 < s.d) *(float2*)(to + j * 8) = make_float2(from[0], from[1]);
      }
    }
  }
};

#define ENTRY(NAME, T, t, D, GROUPS, STAGES, FORM, MASKED)                                                              \
  extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 1) attention_wgmma_##NAME##_##t##_d##D(              \
      const __grid_constant__ Operands<D> s, float* lse, const float* bias, u32 causal) {                               \
    Attention<T, D, GROUPS, STAGES, FORM, MASKED>(s, lse, bias, causal).run();                                          \
  }
#define ENTRIES(T, t)                                                                                                   \
  ENTRY(forward, T, t, 64, 3, 3, TURNS, false)                                                                          \
  ENTRY(forward, T, t, 80, 2, 3, TURNS, false)                                                                          \
  ENTRY(forward, T, t, 96, 2, 3, TURNS, false)                                                                          \
  ENTRY(forward, T, t, 128, 2, 2, TURNS, false)                                                                         \
  ENTRY(masked, T, t, 64, 2, 2, TURNS, true)                                                                            \
  ENTRY(masked, T, t, 128, 2, 2, TURNS, true)
ENTRIES(bf16, bf16)
ENTRIES(f16, f16)
// To be timed beside the former: see `variants` of src/ops/attention/cuda/hopper.rs.
ENTRY(turns_192_s2, bf16, bf16, 64, 3, 2, TURNS, false)
ENTRY(turns_128_s3, bf16, bf16, 64, 2, 3, TURNS, false)
ENTRY(overlap_128_s3, bf16, bf16, 64, 2, 3, OVERLAP, false)
ENTRY(serial_192_s3, bf16, bf16, 64, 3, 3, SERIAL, false)
ENTRY(serial_192_s2, bf16, bf16, 64, 3, 2, SERIAL, false)
ENTRY(serial_128_s3, bf16, bf16, 64, 2, 3, SERIAL, false)
ENTRY(overlap_128_s2, bf16, bf16, 128, 2, 2, OVERLAP, false)
ENTRY(serial_128_s2, bf16, bf16, 128, 2, 2, SERIAL, false)
