// Differences of operands: see src/ops/products, whose launcher makes the tables.
#pragma once
#include "common/operand.cuh"

constexpr int MOST = 4;

// An operand of a difference; a null one ends it.
struct Term {
  const void* x;
  u32 type, unused;
};

// Elements at to at + count of a difference: of its terms times their weights, added up in f32, in order.
__device__ __forceinline__ float4 difference(const Term* terms, const float* weights, u64 at, u32 count) {
  float4 d;
#pragma unroll 1
  for (int j = 0; j < MOST; ++j) {
    const Term term = terms[j];
    if (!term.x) break;
    // An address out of a table might be of any memory, for all the compiler knows.
    __builtin_assume(__isGlobal(term.x));
    float w = weights[j];
    float4 x = load_four(term.x, term.type, at, count);
    float4 y = make_float4(w * x.x, w * x.y, w * x.z, w * x.w);
    d = j == 0 ? y : make_float4(d.x + y.x, d.y + y.y, d.z + y.z, d.w + y.w);
  }
  return d;
}
