// What sm_90a has, one by one, for what src/device/gpu/semantics says of it.
// shared semantics_layout_* 17424
// shared semantics_rows_* 9232
// shared semantics_width_* 42000
// shared semantics_load_* 9232
// shared semantics_store_* 9232
// hot semantics_*
#include "common/hopper.cuh"

extern __shared__ __align__(16) unsigned char raw[];

// Dynamic shared memory from a multiple of 1024 on, where every pattern of a swizzle begins.
__device__ __forceinline__ u32 shared_base() { return (smem_u32(raw) + 1023) & ~1023u; }

__device__ __forceinline__ void begin(u32 barrier, u32 count) {
  if (threadIdx.x == 0) {
    barrier_init(barrier, count);
    barrier_init_fence();
  }
  __syncthreads();
}

// D [64, N] of a warp group, row by row.
template <int N> __device__ __forceinline__ void put(const float (&d)[N / 2], float* out) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) out[(row + 8 * (i / 2 % 2)) * N + 8 * (i / 4) + 2 * (lane % 4) + i % 2] = d[i];
}

template <int N> __device__ __forceinline__ void clear(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) d[i] = 0.0f;
  settle(d);
}

// ---- matrices as descriptors say ----

// An operand of 64 x 64 numbers of two bytes, which lies as panels of 64 rows of `width` bytes; 16 bytes are no swizzle. Rows
// are those of A or columns of B, or (ACROSS) depth.
template <int ACROSS> __device__ __forceinline__ u64 operand(u32 base, int k16, u32 width) {
  const u32 panel = 64 * width, per = width / 32;
  u32 at = base, leading = panel, stride = 8 * width;
  if (ACROSS) {
    at += k16 * 16 * width;
  } else {
    at += per ? k16 / per * panel + k16 % per * 32 : k16 * 2 * panel;
  }
  if (ACROSS && width == 16) {
    leading = stride;
    stride = panel;
  }
  const u64 mode = width == 128 ? 1 : width == 64 ? 2 : width == 32 ? 3 : 0;
  return (u64)((at & 0x3FFFF) >> 4) | ((u64)(leading >> 4) << 16) | ((u64)(stride >> 4) << 32) | (mode << 62);
}

template <int TA, int TB> __device__ __forceinline__ void layout(const TensorMap* a, const TensorMap* b, float* out, u32 width) {
  const u32 base = shared_base(), full = base + 16384;
  begin(full, 1);
  if (threadIdx.x == 0) {
    barrier_expect(full, 16384);
    for (u32 p = 0; p < 128 / width; ++p) {
      tma_load(base + p * 64 * width, a, full, p * width / 2, 0);
      tma_load(base + 8192 + p * 64 * width, b, full, p * width / 2, 0);
    }
  }
  barrier_wait(full, 0);
  float d[32];
  clear(d);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    Wgmma<bf16, 64>::ss<TA, TB>(d, operand<TA>(base, k, width), operand<TB>(base + 8192, k, width));
  }
  wgmma_commit();
  wgmma_wait<0>();
  put<64>(d, out);
}

#define LAYOUT(name, TA, TB)                                                                                            \
  extern "C" __global__ void __launch_bounds__(128)                                                                     \
      semantics_layout_##name(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* out, u32 width) { \
    layout<TA, TB>(&a, &b, out, width);                                                                                 \
  }
LAYOUT(kk, 0, 0)
LAYOUT(kn, 0, 1)
LAYOUT(mk, 1, 0)
LAYOUT(mn, 1, 1)

// A [64, 64] from global memory into registers, B [64, 64] K-major from shared memory.
template <typename T> __device__ __forceinline__ void rows(const u32* a, const TensorMap* b, float* out) {
  const u32 base = shared_base(), full = base + 8192;
  begin(full, 1);
  if (threadIdx.x == 0) {
    barrier_expect(full, 8192);
    tma_load(base, b, full, 0, 0);
  }
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
  u32 ra[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) ra[k][i] = a[(row + i % 2 * 8) * 32 + k * 8 + i / 2 * 4 + lane % 4];
  }
  barrier_wait(full, 0);
  float d[32];
  clear(d);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) Wgmma<T, 64>::template rs<0>(d, ra[k], descriptor<128>(base + 32 * k, 16, 1024));
  wgmma_commit();
  wgmma_wait<0>();
  put<64>(d, out);
}

#define ROWS(T, t)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(128)                                                                     \
      semantics_rows_##t(const u32* a, const __grid_constant__ TensorMap b, float* out) {                               \
    rows<T>(a, &b, out);                                                                                                \
  }
ROWS(f16, f16)
ROWS(bf16, bf16)

// D [64, N] of one A [64, 64] and the first N rows of one B: what a column is must not depend on N.
template <int N> __device__ __forceinline__ void width(const TensorMap* a, const TensorMap* b, float* out) {
  const u32 base = shared_base(), full = base + 40960;
  begin(full, 1);
  if (threadIdx.x == 0) {
    barrier_expect(full, 8192 + N * 128);
    tma_load(base, a, full, 0, 0);
    tma_load(base + 8192, b, full, 0, 0);
  }
  barrier_wait(full, 0);
  float d[N / 2];
  clear(d);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    Wgmma<bf16, N>::template ss<>(d, descriptor<128>(base + 32 * k, 16, 1024), descriptor<128>(base + 8192 + 32 * k, 16, 1024));
  }
  wgmma_commit();
  wgmma_wait<0>();
  put<N>(d, out);
}

#define WIDTH(N)                                                                                                        \
  extern "C" __global__ void __launch_bounds__(128)                                                                     \
      semantics_width_##N(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* out) {       \
    width<N>(&a, &b, out);                                                                                              \
  }
WIDTH(16)
WIDTH(32)
WIDTH(64)
WIDTH(96)
WIDTH(128)
WIDTH(192)
WIDTH(256)

// ---- boxes ----

// Fills shared memory with ones, which a load must overwrite with numbers or zeros.
__device__ __forceinline__ void spoil(u32 base, u32 bytes) {
  for (u32 i = 4 * threadIdx.x; i < bytes; i += 4 * blockDim.x) store_shared(base + i, ~0u);
  fence_async();
}

// A box as it lies in shared memory.
template <typename... At>
__device__ __forceinline__ void load(const TensorMap* from, u32* out, u32 bytes, At... at) {
  const u32 base = shared_base(), full = base + 8192;
  spoil(base, bytes);
  begin(full, 1);
  if (threadIdx.x == 0) {
    barrier_expect(full, bytes);
    tma_load(base, from, full, at...);
  }
  barrier_wait(full, 0);
  for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x) out[i] = load_shared(base + 4 * i);
}
extern "C" __global__ void __launch_bounds__(128)
    semantics_load_2d(const __grid_constant__ TensorMap from, u32* out, u32 bytes, int x, int y) {
  load(&from, out, bytes, x, y);
}
extern "C" __global__ void __launch_bounds__(128)
    semantics_load_4d(const __grid_constant__ TensorMap from, u32* out, u32 bytes, int x, int y, int z, int w) {
  load(&from, out, bytes, x, y, z, w);
}

// Shared memory that threads have written as a box of a tensor.
template <typename... At>
__device__ __forceinline__ void store(const TensorMap* to, const u32* in, u32 bytes, At... at) {
  const u32 base = shared_base();
  for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x) store_shared(base + 4 * i, in[i]);
  fence_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    tma_store(to, base, at...);
    tma_commit();
    tma_wait_read<0>();
  }
}
extern "C" __global__ void __launch_bounds__(128)
    semantics_store_2d(const __grid_constant__ TensorMap to, const u32* in, u32 bytes, int x, int y) {
  store(&to, in, bytes, x, y);
}
extern "C" __global__ void __launch_bounds__(128)
    semantics_store_4d(const __grid_constant__ TensorMap to, const u32* in, u32 bytes, int x, int y, int z, int w) {
  store(&to, in, bytes, x, y, z, w);
}

// Rows that threads write one after the other into the same shared memory, from where they are stored: nothing is seen of
// the row before.
extern "C" __global__ void __launch_bounds__(64) semantics_proxy(const __grid_constant__ TensorMap to, u32 n) {
  __shared__ __align__(128) u32 row[64];
  const u32 t = threadIdx.x, at = smem_u32(row);
#pragma unroll 1
  for (u32 i = 0; i < n; ++i) {
    store_shared(at + 4 * t, i * 64 + t);
    fence_async();
    __syncthreads();
    if (t == 0) {
      tma_store(&to, at, 0, i);
      tma_commit();
      tma_wait_read<0>();
    }
    __syncthreads();
  }
}

// ---- barriers and registers ----

__device__ __forceinline__ u32 barrier_test(u32 barrier, u32 parity) {
  u32 done;
  asm volatile("{\n .reg .pred p;\n mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
  return done;
}

// What a barrier of two arrivals says of its phases, and 32 bytes that two copies bring.
extern "C" __global__ void __launch_bounds__(32) semantics_barrier(const u32* from, u32* out) {
  __shared__ __align__(16) u32 data[8];
  __shared__ __align__(8) u64 phases;
  const u32 barrier = smem_u32(&phases), to = smem_u32(data);
  if (threadIdx.x) return;
  barrier_init(barrier, 2);
  barrier_init_fence();
  out[0] = barrier_test(barrier, 1);
  out[1] = barrier_test(barrier, 0);
  barrier_arrive(barrier);
  out[2] = barrier_test(barrier, 0);
  barrier_arrive(barrier);
  out[3] = barrier_test(barrier, 0);
  out[4] = barrier_test(barrier, 1);
  barrier_expect(barrier, 32);
  barrier_arrive(barrier);
  out[5] = barrier_test(barrier, 1);
  bulk_load(to, from, 16, barrier);
  bulk_load(to + 16, from + 4, 16, barrier);
  barrier_wait(barrier, 1);
  out[6] = barrier_test(barrier, 1);
  out[7] = barrier_test(barrier, 0);
#pragma unroll
  for (int i = 0; i < 8; ++i) out[8 + i] = load_shared(to + 4 * i);
}

// One warp group gives registers to the other two, which then hold 192 numbers each: more than a block of 384 threads begins
// with. Four rounds of v[i] = v[i] / 2 + v[i + 1].
extern "C" __global__ void __launch_bounds__(384, 1) semantics_pool(const float* x, float* out) {
  constexpr int N = 192;
  if (threadIdx.x < 128) {
    registers_give<24>();
    return;
  }
  registers_take<240>();
  const int t = threadIdx.x - 128;
  float v[N];
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = x[t + i];
#pragma unroll 1
  for (int round = 0; round < 4; ++round) {
    const float first = v[0];
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = fmaf(0.5f, v[i], i + 1 < N ? v[i + 1] : first);
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += v[i];
  out[t] = sum;
}
