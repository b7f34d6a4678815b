// Products of a few activation rows with a matrix that is streamed once: what the standalone
// product (gemv.cu) and the fused decoder (decode_layers.cu) share.
//
// A lane has 16-byte pieces of weight rows g and g + 8 (g = lane / 4) of a tile and feeds them to
// mma.m16n8k16 as the A operand; the up to 8 activation rows are the B operand's columns. A dot
// product does not care about the order of its columns, so the fragments take columns in the order
// in which a lane's 16 bytes bring them, and the activations are read in the same order: no
// shuffle, no second layout of the weights.
//
// e4m3 becomes f16, which is one instruction for two weights; the activations beside it are f16 as
// well, with a power of two that keeps every bf16 number of ordinary size exact.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace glimpse::cuda {

/// Activation rows that one pass serves: the columns of the mma's B operand.
inline constexpr int kStreamRows = 8;
/// Columns of an FP8 matrix that share a scale.
inline constexpr int kBlockColumns = 128;

struct Fp8 {
  uint8_t bits;
};

/// Ends the life of what registers held. A register that only some paths write afterwards would
/// count as in use everywhere before.
__device__ inline void forget(uint4& words) {
  asm volatile("mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w));
}
__device__ inline void forget(float& x) {
  asm volatile("mov.b32 %0, 0;" : "=f"(x));
}

// ---- conversions and products -------------------------------------------------------------------

__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// What f16_pairs_of_e4m3() leaves out: without the conversion instruction (before sm_89) the bits
// are moved into place and stand for value * 2^-8.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
inline constexpr float kE4m3Factor = 256;
#else
inline constexpr float kE4m3Factor = 1;
#endif

/// Bytes 0 and 1 of `word` as two f16, and bytes 2 and 3.
__device__ inline void f16_pairs_of_e4m3(uint32_t word, uint32_t& low, uint32_t& high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
  const uint32_t first = __byte_perm(word, 0, 0x1404);
  const uint32_t second = __byte_perm(word, 0, 0x3424);
  low = (first & 0x80008000U) | ((first >> 1) & 0x3F803F80U);
  high = (second & 0x80008000U) | ((second >> 1) & 0x3F803F80U);
#else
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h; "
      "}"
      : "=r"(low), "=r"(high)
      : "r"(word));
#endif
}

/// Bytes 1 and 3 of `word` as two bf16: the e4m3 bits moved into place stand for value * 2^-120,
/// and the multiplication restores it exactly, subnormals included.
__device__ inline uint32_t bf16_pair_of_e4m3(uint32_t word) {
  uint32_t bits = ((word >> 4) & 0x07F007F0U) | (word & 0x80008000U);
  const uint32_t two_to_120 = 0x7B807B80U;
  uint32_t result;
  asm("{ .reg .b32 zero; mov.b32 zero, 0x80008000; fma.rn.bf16x2 %0, %1, %2, zero; }"
      : "=r"(result)
      : "r"(bits), "r"(two_to_120));
  return result;
}

__device__ inline uint32_t bf16_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

/// Beside FP8 weights: the power of two that brings a group of columns into the range of f16, from
/// the largest of their magnitudes.
struct StagedScale {
  float factor;  // of the activations
  float scale;   // what the products are multiplied with
};

/// The largest of a group becomes 2^14 to 2^15; what the exponents of floats do not reach stays
/// below that.
__device__ inline StagedScale staged_scale_of(float largest) {
  const uint32_t exponent = max(__float_as_uint(largest) >> 23, 15U);
  return {__uint_as_float((268U - exponent) << 23),
          __uint_as_float((exponent - 14U) << 23) * kE4m3Factor};
}

__device__ inline uint32_t f16_pair(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

/// Two bf16 numbers times a power of two, as f16.
__device__ inline uint32_t f16_pair_of_bf16(uint32_t pair, __nv_bfloat162 factor) {
  const __nv_bfloat162 product = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&pair), factor);
  const uint32_t bits = *reinterpret_cast<const uint32_t*>(&product);
  return f16_pair(__uint_as_float(bits << 16), __uint_as_float(bits & 0xFFFF0000U));
}

__device__ inline uint4 f16_of_bf16(const uint4& eight, __nv_bfloat162 factor) {
  return {f16_pair_of_bf16(eight.x, factor), f16_pair_of_bf16(eight.y, factor),
          f16_pair_of_bf16(eight.z, factor), f16_pair_of_bf16(eight.w, factor)};
}

/// The largest magnitudes of eight bf16 numbers: of those in the low and in the high halves of the
/// words. As numbers without sign their bits are in the order of the magnitudes.
__device__ inline uint32_t largest_pair(const uint4& eight) {
  constexpr uint32_t kMagnitudes = 0x7FFF7FFFU;
  return __vmaxu2(__vmaxu2(eight.x & kMagnitudes, eight.y & kMagnitudes),
                  __vmaxu2(eight.z & kMagnitudes, eight.w & kMagnitudes));
}
/// The larger of such a pair, as the bits of a float: those of positive numbers are in their order.
__device__ inline uint32_t larger_of_pair(uint32_t pair) {
  return max(pair << 16, pair & 0xFFFF0000U);
}

/// c += 16 bytes of rows g and g + 8 times the activations beside them: e4m3 by f16, before scales.
__device__ inline void multiply_f8(const uint4& lower_piece, const uint4& upper_piece,
                                   const uint4& x0, const uint4& x1, float (&c)[4]) {
  const uint32_t b[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
  const uint32_t lower[4] = {lower_piece.x, lower_piece.y, lower_piece.z, lower_piece.w};
  const uint32_t upper[4] = {upper_piece.x, upper_piece.y, upper_piece.z, upper_piece.w};
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    uint32_t a[4];
    f16_pairs_of_e4m3(lower[word], a[0], a[2]);
    f16_pairs_of_e4m3(upper[word], a[1], a[3]);
    mma_f16(c, a, b[2 * word], b[2 * word + 1]);
  }
}

/// The same of bf16.
__device__ inline void multiply_bf16(const uint4& lower, const uint4& upper, const uint4& x,
                                     float (&c)[4]) {
  const uint32_t a0[4] = {lower.x, upper.x, lower.y, upper.y};
  mma_bf16(c, a0, x.x, x.y);
  const uint32_t a1[4] = {lower.z, upper.z, lower.w, upper.w};
  mma_bf16(c, a1, x.z, x.w);
}

// ---- who takes what -----------------------------------------------------------------------------

/// First of `count` things that part `index` of `parts` takes when they are dealt out evenly. In 32
/// bits: count * parts stays below 2^32.
__host__ __device__ inline int share_begin(int count, int index, int parts) {
  return static_cast<int>(static_cast<unsigned>(count) * static_cast<unsigned>(index) /
                          static_cast<unsigned>(parts));
}

}  // namespace glimpse::cuda
