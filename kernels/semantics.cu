// Instructions one by one, for what src/device/gpu/semantics says of them.
// hot semantics_*
#include "common/mma.cuh"

// `d` of instruction `text` with sources of the kinds given.
#define INTO(d, kd, text, ...) asm volatile(text : kd(d) : __VA_ARGS__)

// Each thread's number, converted: 15 words each.
extern "C" __global__ void semantics_convert(const float* x, u32* out, u32 n) {
  const u32 i = (u32)global_thread();
  if (i >= n) return;
  const float v = x[i];
  u32* to = out + 15 * (u64)i;
  u16 h;
  INTO(h, "=h", "cvt.rn.bf16.f32 %0, %1;", "f"(v));
  to[0] = h;
  INTO(h, "=h", "cvt.rz.bf16.f32 %0, %1;", "f"(v));
  to[1] = h;
  INTO(h, "=h", "cvt.rn.f16.f32 %0, %1;", "f"(v));
  to[2] = h;
  INTO(h, "=h", "cvt.rz.f16.f32 %0, %1;", "f"(v));
  to[3] = h;
  u32 w;
  INTO(w, "=r", "cvt.rn.bf16x2.f32 %0, %1, %2;", "f"(v), "f"(-0.5f * v));
  to[4] = w;
  INTO(w, "=r", "cvt.rn.f16x2.f32 %0, %1, %2;", "f"(v), "f"(-0.5f * v));
  to[5] = w;
  INTO(w, "=r", "cvt.rni.s32.f32 %0, %1;", "f"(v));
  to[6] = w;
  INTO(w, "=r", "cvt.rzi.s32.f32 %0, %1;", "f"(v));
  to[7] = w;
  INTO(w, "=r", "cvt.rmi.s32.f32 %0, %1;", "f"(v));
  to[8] = w;
  INTO(w, "=r", "cvt.rpi.s32.f32 %0, %1;", "f"(v));
  to[9] = w;
  INTO(w, "=r", "cvt.rzi.u32.f32 %0, %1;", "f"(v));
  to[10] = w;
  INTO(w, "=r", "cvt.rna.tf32.f32 %0, %1;", "f"(v));
  to[11] = w;
  float f;
  INTO(f, "=f", "cvt.sat.f32.f32 %0, %1;", "f"(v));
  to[12] = __float_as_uint(f);
  INTO(f, "=f", "cvt.rni.f32.f32 %0, %1;", "f"(v));
  to[13] = __float_as_uint(f);
  INTO(f, "=f", "cvt.f32.f16 %0, %1;", "h"((u16)__float_as_uint(v)));
  to[14] = __float_as_uint(f);
}

// Two numbers of each thread, computed with: 8 results each.
extern "C" __global__ void semantics_arithmetic(const float* x, const float* y, float* out, u32 n) {
  const u32 i = (u32)global_thread();
  if (i >= n) return;
  const float a = x[i], b = y[i];
  float* to = out + 8 * (u64)i;
  float f;
  INTO(f, "=f", "add.rn.f32 %0, %1, %2;", "f"(a), "f"(b));
  to[0] = f;
  INTO(f, "=f", "mul.rn.f32 %0, %1, %2;", "f"(a), "f"(b));
  to[1] = f;
  INTO(f, "=f", "fma.rn.f32 %0, %1, %2, %3;", "f"(a), "f"(b), "f"(-a));
  to[2] = f;
  INTO(f, "=f", "div.rn.f32 %0, %1, %2;", "f"(a), "f"(b));
  to[3] = f;
  INTO(f, "=f", "sqrt.rn.f32 %0, %1;", "f"(a));
  to[4] = f;
  INTO(f, "=f", "min.f32 %0, %1, %2;", "f"(a), "f"(b));
  to[5] = f;
  INTO(f, "=f", "max.f32 %0, %1, %2;", "f"(a), "f"(b));
  to[6] = f;
  INTO(f, "=f", "add.ftz.f32 %0, %1, %2;", "f"(a), "f"(b));
  to[7] = f;
}

// Approximate functions of each thread's numbers: 10 results each.
extern "C" __global__ void semantics_approximate(const float* x, const float* y, float* out, u32 n) {
  const u32 i = (u32)global_thread();
  if (i >= n) return;
  const float a = x[i], b = y[i];
  float* to = out + 10 * (u64)i;
  float f;
  INTO(f, "=f", "ex2.approx.ftz.f32 %0, %1;", "f"(a));
  to[0] = f;
  INTO(f, "=f", "ex2.approx.f32 %0, %1;", "f"(a));
  to[1] = f;
  INTO(f, "=f", "lg2.approx.f32 %0, %1;", "f"(a));
  to[2] = f;
  INTO(f, "=f", "rcp.approx.ftz.f32 %0, %1;", "f"(a));
  to[3] = f;
  INTO(f, "=f", "rsqrt.approx.f32 %0, %1;", "f"(a));
  to[4] = f;
  INTO(f, "=f", "sqrt.approx.f32 %0, %1;", "f"(a));
  to[5] = f;
  INTO(f, "=f", "tanh.approx.f32 %0, %1;", "f"(a));
  to[6] = f;
  INTO(f, "=f", "sin.approx.f32 %0, %1;", "f"(a));
  to[7] = f;
  INTO(f, "=f", "cos.approx.f32 %0, %1;", "f"(a));
  to[8] = f;
  INTO(f, "=f", "div.approx.f32 %0, %1, %2;", "f"(a), "f"(b));
  to[9] = f;
}

// A [16, 16] and B [16, 16] of two warps: what ldmatrix makes of A, ldmatrix.trans of B, and d [16, 16] = A B + 1, of which
// each warp has half of the columns.
template <typename T> __device__ __forceinline__ void fragments(const T* a, const T* b, u32* loaded, float* d) {
  __shared__ __align__(16) T tiles[2][16][16];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int i = threadIdx.x; i < 256; i += 64) {
    tiles[0][i / 16][i % 16] = a[i];
    tiles[1][i / 16][i % 16] = b[i];
  }
  __syncthreads();
  u32 ra[4], rb[4];
  ldmatrix4(ra, smem_u32(&tiles[0][lane % 16][lane / 16 * 8]));
  ldmatrix4_t(rb, smem_u32(&tiles[1][lane % 16][lane / 16 * 8]));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    loaded[8 * threadIdx.x + i] = ra[i];
    loaded[8 * threadIdx.x + 4 + i] = rb[i];
  }
  float s[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  mma16816<T>(s, ra, warp ? rb[2] : rb[0], warp ? rb[3] : rb[1]);
#pragma unroll
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 16 + 8 * warp + lane % 4 * 2 + i % 2] = s[i];
}

#define FRAGMENTS(T, t)                                                                                                 \
  extern "C" __global__ void __launch_bounds__(64) semantics_mma_##t(const T* a, const T* b, u32* loaded, float* d) {  \
    fragments<T>(a, b, loaded, d);                                                                                      \
  }
FRAGMENTS(f16, f16)
FRAGMENTS(bf16, bf16)

// Copies of 0 to 16 bytes of 16, then of 0 to 4 of 4, over what another thread has filled with ones.
extern "C" __global__ void __launch_bounds__(64) semantics_cp_async(const u8* from, u32* out) {
  __shared__ __align__(16) u32 wide[64][4];
  __shared__ u32 narrow[64];
  const int t = threadIdx.x, other = t ^ 33;
  for (int i = 0; i < 4; ++i) wide[other][i] = ~0u;
  narrow[other] = ~0u;
  __syncthreads();
  cp_async16(smem_u32(wide[t]), from + 16 * t, t % 17);
  cp_async_commit();
  cp_async4(smem_u32(&narrow[t]), from + 4 * t, t % 5);
  cp_async_commit();
  // The younger group need not be there yet.
  cp_async_wait<1>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[5 * t + i] = wide[other][i];
  cp_async_wait<0>();
  __syncthreads();
  out[5 * t + 4] = narrow[other];
}
