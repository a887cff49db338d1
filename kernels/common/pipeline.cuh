// The frame of persistent products on Hopper: one warp group that copies, and others that multiply 64 rows each of a tile.
//
// A ring of stages brings operands in; a few slots for each multiplying group take boxes of 64 x 64 results out, and bring
// in what they are combined with. What lies in either is 128 bytes a row, swizzled, and begins at a multiple of 1024.
#pragma once
#include "common/hopper.cuh"

constexpr u32 GROUP = 128, BOX = 64, BOX_BYTES = BOX * BOX * 2;

// One thread copies, `claim` by `claim`; all warps of the multiplying groups read, and give back what they have read.
template <int STAGES, u32 BYTES> struct Ring {
  u32 stages, barriers;
  int stage;
  u32 phase;

  static constexpr u32 BARRIERS = 16 * STAGES;
  // By one thread, before a barrier_init_fence().
  __device__ __forceinline__ static void init(u32 barriers, u32 readers) {
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(barriers + 8 * i, 1);
      barrier_init(barriers + 8 * (STAGES + i), readers);
    }
  }
  __device__ __forceinline__ Ring(u32 stages, u32 barriers) : stages(stages), barriers(barriers), stage(0), phase(0) {}
  __device__ __forceinline__ u32 at() const { return stages + stage * BYTES; }
  __device__ __forceinline__ u32 full() const { return barriers + 8 * stage; }
  __device__ __forceinline__ u32 empty() const { return barriers + 8 * (STAGES + stage); }
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
  // The stage, free and waiting for BYTES.
  __device__ __forceinline__ u32 claim() {
    barrier_wait(empty(), phase ^ 1);
    barrier_expect(full(), BYTES);
    return at();
  }
};

// d [64, N] += a w of `steps` stages of 64 in depth. In a stage: a [64][64] from byte `a` on, w from byte `w` on, that is
// [N][64], or, where it lies ACROSS, panels [64][64] of 64 columns each.
template <typename T, int N, bool ACROSS, int STAGES, u32 BYTES>
__device__ __forceinline__ void multiply(float (&d)[N / 2], Ring<STAGES, BYTES>& ring, u32 a, u32 w, int steps) {
  const bool releases = threadIdx.x % 32 == 0;
  u32 before = 0;
  settle(d);
#pragma unroll 1
  for (int k = 0; k < steps; ++k) {
    barrier_wait(ring.full(), ring.phase);
    const u64 of_a = descriptor<128>(ring.at() + a, 16, 1024), of_w = descriptor<128>(ring.at() + w, ACROSS ? BOX_BYTES : 16, 1024);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) Wgmma<T, N>::template ss<0, ACROSS>(d, of_a + 2 * i, of_w + (ACROSS ? 128 : 2) * i);
    wgmma_commit();
    // The product before this one has read its stage.
    wgmma_wait<1>();
    if (k > 0 && releases) barrier_arrive(before);
    before = ring.empty();
    ring.next();
  }
  wgmma_wait<0>();
  if (releases) barrier_arrive(before);
}

// The slots of one multiplying group. One thread of the copying group keeps them: it hands each out, filled where something
// is to be read from it, and copies what is put there to memory. Both sides go through the uses in one order.
template <int SLOTS> struct Slots {
  u32 boxes, barriers;
  int slot;
  u32 phase;

  // Barriers, and 16 bytes that the keeper notes of each use.
  static constexpr u32 BARRIERS = 16 * SLOTS, NOTES = 16 * SLOTS;
  __device__ __forceinline__ static void init(u32 barriers) {
    for (int i = 0; i < SLOTS; ++i) {
      barrier_init(barriers + 8 * i, 1);
      barrier_init(barriers + 8 * (SLOTS + i), GROUP / 32);
    }
  }
  __device__ __forceinline__ Slots(u32 boxes, u32 barriers) : boxes(boxes), barriers(barriers), slot(0), phase(0) {}
  __device__ __forceinline__ u32 at() const { return boxes + slot * BOX_BYTES; }
  __device__ __forceinline__ u32 ready() const { return barriers + 8 * slot; }
  __device__ __forceinline__ u32 done() const { return barriers + 8 * (SLOTS + slot); }
  __device__ __forceinline__ void next() {
    if (++slot == SLOTS) {
      slot = 0;
      phase ^= 1;
    }
  }
  // By the whole group: the box of this use.
  __device__ __forceinline__ u32 take() const {
    barrier_wait(ready(), phase);
    return at();
  }
  // By the whole group, when everything is in the box.
  __device__ __forceinline__ void put() {
    fence_async();
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(done());
    next();
  }
};

template <int SLOTS> struct Keeper {
  Slots<SLOTS> slots;
  u32 notes;
  int uses;

  __device__ __forceinline__ Keeper(Slots<SLOTS> slots, u32 notes) : slots(slots), notes(notes), uses(0) {}

  // Copies what is in the slot that is the next one.
  __device__ __forceinline__ void empty() {
    if (uses < SLOTS) return;
    barrier_wait(slots.done(), slots.phase ^ 1);
    u64 map;
    int x, y;
    const u32 note = notes + 16 * slots.slot;
    asm volatile("ld.shared.b64 %0, [%1];" : "=l"(map) : "r"(note) : "memory");
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(x), "=r"(y) : "r"(note + 8) : "memory");
    tma_store((const TensorMap*)map, slots.at(), x, y);
    tma_commit();
  }
  // Hands out a box that goes to (x, y) of `to`, with what is there in `from` if that is not null.
  __device__ __forceinline__ void hand(const TensorMap* to, const TensorMap* from, int x, int y) {
    empty();
    tma_wait_read<0>();
    const u32 note = notes + 16 * slots.slot;
    asm volatile("st.shared.b64 [%0], %1;" ::"r"(note), "l"((u64)to) : "memory");
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(note + 8), "r"(x), "r"(y) : "memory");
    if (from) {
      barrier_expect(slots.ready(), BOX_BYTES);
      tma_load(slots.at(), from, slots.ready(), x, y);
    } else {
      barrier_arrive(slots.ready());
    }
    ++uses;
    slots.next();
  }
  // Copies what is left; shared memory may go after it.
  __device__ __forceinline__ void finish() {
#pragma unroll 1
    for (int i = 0; i < SLOTS; ++i) {
      empty();
      ++uses;
      slots.next();
    }
    tma_wait_read<0>();
  }
};
