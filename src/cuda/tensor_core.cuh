// What the compute-bound kernels share: asynchronous copies into shared memory, matrix loads and
// the m16n8k16 bf16 product, on everything from sm_80 on. In comments, g = lane / 4 and
// t = lane % 4: a lane holds rows g and g + 8 of A and of the sum, columns 2t and 2t + 1 of the
// sum, and column g of B.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace glimpse::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes from global to shared memory; zeros where `valid` is false (nothing is read then).
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
               "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/// Waits until at most kPending of this thread's copy groups are under way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

/// Four 8x8 matrices of 16-bit elements; lanes 8i .. 8i + 7 name the rows of matrix i.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&fragment)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&fragment)[4],
                                                          uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_matrix_x2_transposed(uint32_t (&fragment)[2],
                                                          uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(fragment[0]), "=r"(fragment[1])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_shared_8_bytes(uint32_t& low, uint32_t& high,
                                                    uint32_t address) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];\n"
               : "=r"(low), "=r"(high)
               : "r"(address)
               : "memory");
}

/// sum[16, 8] += a[16, 16] b[16, 8]
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Two floats as bf16, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000U)};
}

/// Four consecutive e4m3 values as two pairs of bf16, exactly. e4m3 is s eeee mmm: moved to bit 4,
/// exponent and mantissa stand where bf16 has the low exponent bits and the high mantissa bits, a
/// number 2^120 too small, subnormals included; the sign goes from bit 7 to bit 15. The NaN codes
/// come out as +-480.
__device__ __forceinline__ void e4m3_to_bf16(uint32_t four, uint32_t& first, uint32_t& second) {
  const uint32_t low = __byte_perm(four, 0, 0x4140);   // bytes 0 and 1, each in its own half
  const uint32_t high = __byte_perm(four, 0, 0x4342);  // bytes 2 and 3
  // 16 v moves the magnitude into place and the sign to bit 11; 0xf0 times the sign moves it on.
  const uint32_t low_moved = (low << 4) + (low & 0x00800080U) * 0xf0U;
  const uint32_t high_moved = (high << 4) + (high & 0x00800080U) * 0xf0U;
  const __nv_bfloat162 two_to_120 =
      __halves2bfloat162(__ushort_as_bfloat16(0x7b80), __ushort_as_bfloat16(0x7b80));
  const __nv_bfloat162 a = __hmul2(reinterpret_cast<const __nv_bfloat162&>(low_moved), two_to_120);
  const __nv_bfloat162 b = __hmul2(reinterpret_cast<const __nv_bfloat162&>(high_moved), two_to_120);
  first = reinterpret_cast<const uint32_t&>(a);
  second = reinterpret_cast<const uint32_t&>(b);
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The two numbers of a rotary pair after their rotation. Spelled out, so that every kernel that
/// rotates rounds alike.
__device__ __forceinline__ float rotated_first(float first, float second, float cosine,
                                               float sine) {
  return fmaf(first, cosine, -(second * sine));
}
__device__ __forceinline__ float rotated_second(float first, float second, float cosine,
                                                float sine) {
  return fmaf(second, cosine, first * sine);
}

__device__ __forceinline__ float silu(float x) {
  return x * reciprocal(1.0F + exp2_fast(-1.4426950408889634F * x));
}

}  // namespace glimpse::cuda
