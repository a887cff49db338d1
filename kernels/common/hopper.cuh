// What sm_90a has: barriers in shared memory, bulk copies by tensor maps, and products of warp groups (wgmma).
//
// Operands lie in shared memory as bulk copies with a swizzle leave them. A wait for a group of products speaks for the warp
// that waits alone, so that a stage is given back by one lane of every warp.
#pragma once
#include "common/mma.cuh"

// The driver's CUtensorMap; passed by value in a `__grid_constant__` parameter.
struct alignas(64) TensorMap {
  u64 opaque[16];
};

// ---- barriers ----

// `count` arrivals, and all bytes that were announced, complete a phase.
__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// After all barrier_init of a thread, before a __syncthreads().
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Arrives, and announces bytes.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Waits for the phase of this parity; that before the first has parity 1 and is complete.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
  u32 done;
  do {
    asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (!done);
}
// Named barriers, of `threads` threads of the block.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- bulk copies: coordinates innermost first; what is outside is read as zero and not written ----

__device__ __forceinline__ void prefetch_map(const TensorMap* m) { asm volatile("prefetch.tensormap [%0];" ::"l"(m) : "memory"); }
__device__ __forceinline__ void tma_load(u32 to, const TensorMap* m, u32 barrier, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
               "l"(m), "r"(barrier), "r"(x), "r"(y)
               : "memory");
}
__device__ __forceinline__ void tma_load(u32 to, const TensorMap* m, u32 barrier, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
               "l"(m), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
}
// Bytes as they lie: aligned to 16, as many as a multiple of 16.
__device__ __forceinline__ void bulk_load(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
               "r"(bytes), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void tma_store(const TensorMap* m, u32 from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(m), "r"(from), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ void tma_store(const TensorMap* m, u32 from, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(m), "r"(from), "r"(x),
               "r"(y), "r"(z), "r"(w)
               : "memory");
}
__device__ __forceinline__ void tma_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until shared memory has been read by all but the N youngest groups of this thread's stores.
template <int N> __device__ __forceinline__ void tma_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); }
// What this thread has stored in shared memory is there for bulk copies and products that come after; then a barrier.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- registers of a warp group ----

template <int R> __device__ __forceinline__ void registers_take() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(R)); }
template <int R> __device__ __forceinline__ void registers_give() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(R)); }

// ---- operands in shared memory ----

// A matrix in 128, 64 or 32-byte swizzle; `leading` and `stride` in bytes (PTX ISA, matrix-descriptor format).
template <int SWIZZLE> __device__ __forceinline__ u64 descriptor(u32 at, u32 leading, u32 stride) {
  constexpr u64 MODE = SWIZZLE == 128 ? 1 : SWIZZLE == 64 ? 2 : 3;
  return (u64)((at & 0x3FFFF) >> 4) | ((u64)(leading >> 4) << 16) | ((u64)(stride >> 4) << 32) | (MODE << 62);
}
// Where 16 bytes of row r, number j in it, are in a tile of rows of 128 bytes that lies swizzled at a multiple of 1024.
__device__ __forceinline__ u32 swizzled(int r, int j) { return r * 128 + ((j ^ (r & 7)) << 4); }
__device__ __forceinline__ void store_shared(u32 at, u32 v) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(v) : "memory"); }
__device__ __forceinline__ u32 load_shared(u32 at) {
  u32 v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}

// ---- products of 64 rows by a warp group ----
//
// Thread t of the group, warp w = t / 32, g = t % 32 / 4, q = t % 4, has in d[i] row 16 w + g + 8 (i / 2 % 2), column
// 8 (i / 4) + 2 q + i % 2. Register i of A has, in that row (i % 2 for i / 2 % 2), depth 8 (i / 2) + 2 q and the next.

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most the N youngest groups are under way.
template <int N> __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// Before a wgmma_fence: numbers are in their registers now. NVRTC otherwise sinks `d = 0` below the fence, to its first use.
template <int N> __device__ __forceinline__ void settle(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// D [64, N] = A [64, 16] B [16, N] (+ D), of numbers of type T. `ss`: A from shared memory, `rs`: from registers. ACROSS: an
// operand's neighbours in memory are rows of A or columns of B, else they are neighbours in depth.
template <typename T, int N> struct Wgmma;

#define TEN(i) "%" #i "0,%" #i "1,%" #i "2,%" #i "3,%" #i "4,%" #i "5,%" #i "6,%" #i "7,%" #i "8,%" #i "9,"
#define UNITS "%0,%1,%2,%3,%4,%5,%6,%7,"
#define UPTO32 UNITS "%8,%9," TEN(1) TEN(2) "%30,%31"
#define UPTO60 UNITS "%8,%9," TEN(1) TEN(2) TEN(3) TEN(4) TEN(5)
#define UPTO90 UPTO60 TEN(6) TEN(7) TEN(8)
#define F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F8(i) F4(i), F4(i + 4)
#define F16(i) F8(i), F8(i + 8)
#define F32R(i) F16(i), F16(i + 16)
#define LIST_OF(...) __VA_ARGS__
// The numbers of the operands behind those of D.
#define WGMMA_OF(T, TYPE, N, LIST, REGISTERS, R0, R1, R2, R3, R4, R5, R6)                                               \
  template <> struct Wgmma<T, N> {                                                                                      \
    template <int A_ACROSS = 0, int B_ACROSS = 0>                                                                       \
    static __device__ __forceinline__ void ss(float (&d)[N / 2], u64 a, u64 b, int add = 1) {                           \
      asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #R2 ", 0;\n wgmma.mma_async.sync.aligned.m64n" #N             \
                   "k16.f32." TYPE "." TYPE " {" LIST "}, %" #R0 ", %" #R1 ", p, 1, 1, %" #R3 ", %" #R4 ";\n}"          \
                   : LIST_OF REGISTERS                                                                                  \
                   : "l"(a), "l"(b), "r"(add), "n"(A_ACROSS), "n"(B_ACROSS));                                           \
    }                                                                                                                   \
    template <int B_ACROSS = 0>                                                                                         \
    static __device__ __forceinline__ void rs(float (&d)[N / 2], const u32 (&a)[4], u64 b, int add = 1) {               \
      asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #R5 ", 0;\n wgmma.mma_async.sync.aligned.m64n" #N             \
                   "k16.f32." TYPE "." TYPE " {" LIST "}, {%" #R0 ",%" #R1 ",%" #R2 ",%" #R3 "}, %" #R4                 \
                   ", p, 1, 1, %" #R6 ";\n}"                                                                            \
                   : LIST_OF REGISTERS                                                                                  \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(B_ACROSS));                      \
    }                                                                                                                   \
  };
#define WGMMA(...) WGMMA_OF(bf16, "bf16", __VA_ARGS__) WGMMA_OF(f16, "f16", __VA_ARGS__)
WGMMA(16, "%0,%1,%2,%3,%4,%5,%6,%7", (F8(0)), 8, 9, 10, 11, 12, 13, 14)
WGMMA(32, UNITS "%8,%9,%10,%11,%12,%13,%14,%15", (F16(0)), 16, 17, 18, 19, 20, 21, 22)
WGMMA(64, UPTO32, (F32R(0)), 32, 33, 34, 35, 36, 37, 38)
WGMMA(96, UNITS "%8,%9," TEN(1) TEN(2) TEN(3) "%40,%41,%42,%43,%44,%45,%46,%47", (F32R(0), F16(32)), 48, 49, 50, 51, 52, 53, 54)
WGMMA(128, UPTO60 "%60,%61,%62,%63", (F32R(0), F32R(32)), 64, 65, 66, 67, 68, 69, 70)
WGMMA(192, UPTO90 "%90,%91,%92,%93,%94,%95", (F32R(0), F32R(32), F32R(64)), 96, 97, 98, 99, 100, 101, 102)
WGMMA(256, UPTO90 TEN(9) TEN(10) TEN(11) "%120,%121,%122,%123,%124,%125,%126,%127",
      (F32R(0), F32R(32), F32R(64), F32R(96)), 128, 129, 130, 131, 132, 133, 134)
#undef WGMMA
#undef WGMMA_OF
#undef LIST_OF
#undef UNITS
#undef UPTO32
#undef UPTO60
#undef UPTO90
#undef TEN
#undef F4
#undef F8
#undef F16
#undef F32R
