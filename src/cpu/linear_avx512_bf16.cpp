// Products of bf16 with vdpbf16ps: 32 multiplications and additions an instruction. The one file
// with intrinsics: Highway 1.0.3 does not know the instruction. Its functions carry the target
// themselves, so the rest of the program runs on any processor.
#include "cpu/kernels.h"

#if defined(__x86_64__)
// GCC 12 takes the deliberately undefined vectors inside its own intrinsics for mistakes of ours.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>

#define GLIMPSE_TARGET_BF16 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512bf16")))

namespace glimpse::cpu {
namespace {

GLIMPSE_TARGET_BF16 inline __m512bh load_pairs(const void* p) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
}

// Loads of a row's end. Only there: a masked load that misses the cache holds up those behind it.
GLIMPSE_TARGET_BF16 inline __m512bh load_pairs(const BFloat16* p, int64_t count) {
  if (count >= 32) return load_pairs(p);
  return reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16((1U << count) - 1U, p));
}

GLIMPSE_TARGET_BF16 inline __m512i load_codes(const Float8E4M3* p, int64_t count) {
  if (count >= 64) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, p);
}

// Weights of the next pages are on their way while these are multiplied: decoding waits for memory
// and nothing else.
constexpr int64_t kPrefetchBytes = 2048;

GLIMPSE_TARGET_BF16 inline void prefetch_ahead(const void* p) {
  _mm_prefetch(static_cast<const char*>(p) + kPrefetchBytes, _MM_HINT_T0);
}

// kX dot products of one weight row, in two sums each.
template <int kX>
GLIMPSE_TARGET_BF16 void bf16_row(const BFloat16* x, int64_t x_stride, const BFloat16* w,
                                  int64_t columns, float* sums) {
  __m512 even[kX];
  __m512 odd[kX];
#pragma GCC unroll 4
  for (int t = 0; t < kX; ++t) even[t] = odd[t] = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + 64 <= columns; k += 64) {
    const __m512bh first = load_pairs(w + k);
    const __m512bh second = load_pairs(w + k + 32);
    prefetch_ahead(w + k);
    prefetch_ahead(w + k + 32);
#pragma GCC unroll 4
    for (int t = 0; t < kX; ++t) {
      even[t] = _mm512_dpbf16_ps(even[t], first, load_pairs(x + t * x_stride + k));
      odd[t] = _mm512_dpbf16_ps(odd[t], second, load_pairs(x + t * x_stride + k + 32));
    }
  }
  for (; k < columns; k += 32) {
    const __m512bh rest = load_pairs(w + k, columns - k);
#pragma GCC unroll 4
    for (int t = 0; t < kX; ++t) {
      even[t] = _mm512_dpbf16_ps(even[t], rest, load_pairs(x + t * x_stride + k, columns - k));
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kX; ++t) sums[t] = _mm512_reduce_add_ps(_mm512_add_ps(even[t], odd[t]));
}

// High and low byte of the bf16 that equals each e4m3 magnitude: exact, subnormals included.
struct Fp8Tables {
  alignas(64) std::array<uint8_t, 128> high;
  alignas(64) std::array<uint8_t, 128> low;
};

constexpr Fp8Tables make_tables() {
  Fp8Tables tables{};
  for (int code = 0; code < 128; ++code) {
    const uint16_t bits = to_bfloat16(to_float(Float8E4M3{static_cast<uint8_t>(code)})).bits;
    tables.high[static_cast<size_t>(code)] = static_cast<uint8_t>(bits >> 8);
    tables.low[static_cast<size_t>(code)] = static_cast<uint8_t>(bits & 0xFF);
  }
  return tables;
}

constexpr Fp8Tables kTables = make_tables();

// 64 codes as two vectors of bf16. Unpacking works inside 128-bit lanes, so columns 0-7, 16-23,
// 32-39, 48-55 come first: interleave_for_fp8() puts the activations in the same order.
struct Fp8Unpacker {
  __m512i high0, high1, low0, low1;

  GLIMPSE_TARGET_BF16 Fp8Unpacker()
      : high0(_mm512_load_si512(kTables.high.data())),
        high1(_mm512_load_si512(kTables.high.data() + 64)),
        low0(_mm512_load_si512(kTables.low.data())),
        low1(_mm512_load_si512(kTables.low.data() + 64)) {}

  GLIMPSE_TARGET_BF16 inline void unpack(__m512i codes, __m512i& first, __m512i& second) const {
    // vpermi2b looks at seven bits of the index: the sign does not disturb it.
    const __m512i low = _mm512_permutex2var_epi8(low0, codes, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, codes, high1);
    // high = magnitude | (codes & 0x80)
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, codes, _mm512_set1_epi8(-128), 0xF8);
    first = _mm512_unpacklo_epi8(low, high);
    second = _mm512_unpackhi_epi8(low, high);
  }
};

// 64 columns times kX rows, added to `sums`.
template <int kX>
GLIMPSE_TARGET_BF16 inline void fp8_step(const Fp8Unpacker& unpacker, __m512i codes,
                                         const BFloat16* x, int64_t x_stride, __m512 sums[kX]) {
  __m512i first;
  __m512i second;
  unpacker.unpack(codes, first, second);
#pragma GCC unroll 4
  for (int t = 0; t < kX; ++t) {
    const BFloat16* row = x + t * x_stride;
    sums[t] = _mm512_dpbf16_ps(sums[t], reinterpret_cast<__m512bh>(first), load_pairs(row));
    sums[t] = _mm512_dpbf16_ps(sums[t], reinterpret_cast<__m512bh>(second), load_pairs(row + 32));
  }
}

template <int kX>
GLIMPSE_TARGET_BF16 void fp8_row(const BFloat16* x, int64_t x_stride, const Float8E4M3* w,
                                 const float* scales, int64_t columns, float* sums) {
  const Fp8Unpacker unpacker;
  __m512 total[kX];
#pragma GCC unroll 4
  for (int t = 0; t < kX; ++t) total[t] = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + 128 <= columns; k += 128) {
    __m512 block[kX];
#pragma GCC unroll 4
    for (int t = 0; t < kX; ++t) block[t] = _mm512_setzero_ps();
    fp8_step<kX>(unpacker, _mm512_loadu_si512(w + k), x + k, x_stride, block);
    fp8_step<kX>(unpacker, _mm512_loadu_si512(w + k + 64), x + k + 64, x_stride, block);
    prefetch_ahead(w + k);
    prefetch_ahead(w + k + 64);
    const __m512 scale = _mm512_set1_ps(scales[k / 128]);
#pragma GCC unroll 4
    for (int t = 0; t < kX; ++t) total[t] = _mm512_fmadd_ps(block[t], scale, total[t]);
  }
  for (; k < columns; k += 64) {  // the last block, not whole: `x` is padded with zeros
    __m512 block[kX];
#pragma GCC unroll 4
    for (int t = 0; t < kX; ++t) block[t] = _mm512_setzero_ps();
    fp8_step<kX>(unpacker, load_codes(w + k, columns - k), x + k, x_stride, block);
    const __m512 scale = _mm512_set1_ps(scales[k / 128]);
#pragma GCC unroll 4
    for (int t = 0; t < kX; ++t) total[t] = _mm512_fmadd_ps(block[t], scale, total[t]);
  }
#pragma GCC unroll 4
  for (int t = 0; t < kX; ++t) sums[t] = _mm512_reduce_add_ps(total[t]);
}

// 16 x 16 words of 32 bits, transposed: word j of row i becomes word i of row j.
GLIMPSE_TARGET_BF16 inline void transpose_words(__m512i rows[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xDD);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    rows[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    rows[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    rows[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

// kX activation rows times kVectors vectors of a panel's rows: each pair of x is broadcast, so the
// sums (24 of 32 registers) need no adding across lanes.
template <int kX, int kVectors>
GLIMPSE_TARGET_BF16 void panel_tile(const BFloat16* x, int64_t x_stride, const BFloat16* panel,
                                    int64_t columns, float* sums, const PanelSums& to) {
  __m512 acc[kX][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kX; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) acc[i][j] = _mm512_setzero_ps();
  }
  const auto add_pair = [&](int64_t k, bool is_whole) GLIMPSE_TARGET_BF16 {
    __m512bh b[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) b[j] = load_pairs(panel + (k * kPanelRows + j * 32));
#pragma GCC unroll 8
    for (int i = 0; i < kX; ++i) {
      uint32_t pair = x[i * x_stride + k].bits;
      if (is_whole) std::memcpy(&pair, x + i * x_stride + k, sizeof(pair));
      const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(pair)));
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], a, b[j]);
    }
  };
  for (int64_t k = 0; k + 1 < columns; k += 2) add_pair(k, true);
  if (columns % 2 != 0) add_pair(columns - 1, false);  // the last of an odd number stands alone
  const __m512 factor = _mm512_set1_ps(to.scale);
#pragma GCC unroll 8
  for (int i = 0; i < kX; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      float* at = sums + i * to.stride + j * 16;
      const __m512 before = to.first ? _mm512_setzero_ps() : _mm512_loadu_ps(at);
      _mm512_storeu_ps(at, _mm512_fmadd_ps(acc[i][j], factor, before));
    }
  }
}

template <int kX>
GLIMPSE_TARGET_BF16 void panel_rows(const BFloat16* x, int64_t x_stride, const BFloat16* panel,
                                    int64_t columns, float* sums, const PanelSums& to) {
  if (to.count > 48) return panel_tile<kX, 4>(x, x_stride, panel, columns, sums, to);
  for (int64_t n = 0; n < to.count; n += 16) {
    panel_tile<kX, 1>(x, x_stride, panel + n * 2, columns, sums + n, to);
  }
}

}  // namespace

bool has_bf16_dot() {
  static const bool kHas = __builtin_cpu_supports("avx512bf16") &&
                           __builtin_cpu_supports("avx512vbmi") &&
                           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return kHas;
}

void multiply_bf16_row(const BFloat16* x, int64_t x_stride, int64_t num_x, const BFloat16* w,
                       int64_t columns, float* sums) {
  switch (num_x) {
    case 1:
      return bf16_row<1>(x, x_stride, w, columns, sums);
    case 2:
      return bf16_row<2>(x, x_stride, w, columns, sums);
    case 3:
      return bf16_row<3>(x, x_stride, w, columns, sums);
    default:
      return bf16_row<4>(x, x_stride, w, columns, sums);
  }
}

void multiply_fp8_row(const BFloat16* x, int64_t x_stride, int64_t num_x, const Float8E4M3* w,
                      const float* scales, int64_t columns, float* sums) {
  switch (num_x) {
    case 1:
      return fp8_row<1>(x, x_stride, w, scales, columns, sums);
    case 2:
      return fp8_row<2>(x, x_stride, w, scales, columns, sums);
    case 3:
      return fp8_row<3>(x, x_stride, w, scales, columns, sums);
    default:
      return fp8_row<4>(x, x_stride, w, scales, columns, sums);
  }
}

void interleave_for_fp8(const BFloat16* x, int64_t columns, BFloat16* out) {
  const int64_t padded = (columns + 63) / 64 * 64;
  for (int64_t position = 0; position < padded; ++position) {
    const int64_t in_group = position % 64;
    const int64_t half = in_group / 32;  // unpacklo, then unpackhi
    const int64_t column = position - in_group + in_group % 32 / 8 * 16 + half * 8 + in_group % 8;
    out[position] = column < columns ? x[column] : BFloat16{0};
  }
}

GLIMPSE_TARGET_BF16 void pack_panel(const BFloat16* rows, int64_t stride, int64_t num_rows,
                                    int64_t columns, BFloat16* panel) {
  for (int64_t k = 0; k < columns; k += 32) {
    const int64_t left = std::min<int64_t>(columns - k, 32);
    for (int64_t n = 0; n < kPanelRows; n += 16) {
      __m512i block[16];
      for (int64_t i = 0; i < 16; ++i) {
        block[i] = _mm512_setzero_si512();
        if (n + i >= num_rows) continue;
        block[i] = reinterpret_cast<__m512i>(load_pairs(rows + (n + i) * stride + k, left));
      }
      transpose_words(block);
      for (int64_t j = 0; j < (left + 1) / 2; ++j) {
        _mm512_storeu_si512(panel + ((k / 2 + j) * kPanelRows + n) * 2, block[j]);
      }
    }
  }
}

// Four columns of 16 rows become a vector of codes; put in order, its unpacked halves are the
// panel's two next vectors of pairs.
GLIMPSE_TARGET_BF16 void pack_panel(const Float8E4M3* rows, int64_t stride, int64_t num_rows,
                                    int64_t columns, BFloat16* panel) {
  const Fp8Unpacker unpacker;
  // Of each row's four codes in a lane first the lower pairs, then the upper ones.
  const __m512i pairs_in_order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  for (int64_t k = 0; k < columns; k += 64) {
    const int64_t left = std::min<int64_t>(columns - k, 64);
    for (int64_t n = 0; n < kPanelRows; n += 16) {
      __m512i block[16];
      for (int64_t i = 0; i < 16; ++i) {
        block[i] = n + i < num_rows ? load_codes(rows + (n + i) * stride + k, left)
                                    : _mm512_setzero_si512();
      }
      transpose_words(block);
      const int64_t num_pairs = (left + 1) / 2;
      for (int64_t j = 0; j < num_pairs; j += 2) {
        __m512i first;
        __m512i second;
        unpacker.unpack(_mm512_shuffle_epi8(block[j / 2], pairs_in_order), first, second);
        BFloat16* at = panel + ((k / 2 + j) * kPanelRows + n) * 2;
        _mm512_storeu_si512(at, first);
        if (j + 1 < num_pairs) _mm512_storeu_si512(at + kPanelRows * 2, second);
      }
    }
  }
}

GLIMPSE_TARGET_BF16 void pack_panel_avx512(const float* rows, int64_t stride, int64_t num_rows,
                                           int64_t columns, float* panel) {
  for (int64_t k = 0; k < columns; k += 16) {
    const int64_t left = std::min<int64_t>(columns - k, 16);
    const auto mask = static_cast<__mmask16>((1U << left) - 1U);
    for (int64_t n = 0; n < kPanelRows; n += 16) {
      __m512i block[16];
      for (int64_t i = 0; i < 16; ++i) {
        block[i] = _mm512_setzero_si512();
        if (n + i >= num_rows) continue;
        const float* at = rows + (n + i) * stride + k;
        block[i] = left == 16 ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi32(mask, at);
      }
      transpose_words(block);
      for (int64_t j = 0; j < left; ++j) {
        _mm512_storeu_si512(panel + (k + j) * kPanelRows + n, block[j]);
      }
    }
  }
}

GLIMPSE_TARGET_BF16 void pack_columns(const BFloat16* rows, int64_t stride, int64_t num_rows,
                                      int64_t columns, BFloat16* panel) {
  for (int64_t k = 0; k < num_rows; k += 2) {
    for (int64_t n = 0; n < kPanelRows; n += 16) {
      const int64_t left = std::clamp<int64_t>(columns - n, 0, 16);
      const auto mask = static_cast<__mmask16>((1U << left) - 1U);
      const auto upper = k + 1 < num_rows ? mask : __mmask16{0};
      const BFloat16* at = rows + k * stride + n;
      const __m512i first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at));
      const __m512i second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(upper, at + stride));
      _mm512_storeu_si512(panel + k * kPanelRows + n * 2,
                          _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
    }
  }
}

void multiply_panel(const BFloat16* x, int64_t x_stride, int64_t num_x, const BFloat16* panel,
                    int64_t columns, const PanelSums& to) {
  int64_t t = 0;
  for (; t + 6 <= num_x; t += 6) {
    panel_rows<6>(x + t * x_stride, x_stride, panel, columns, to.sums + t * to.stride, to);
  }
  x += t * x_stride;
  float* sums = to.sums + t * to.stride;
  switch (num_x - t) {
    case 5:
      return panel_rows<5>(x, x_stride, panel, columns, sums, to);
    case 4:
      return panel_rows<4>(x, x_stride, panel, columns, sums, to);
    case 3:
      return panel_rows<3>(x, x_stride, panel, columns, sums, to);
    case 2:
      return panel_rows<2>(x, x_stride, panel, columns, sums, to);
    case 1:
      return panel_rows<1>(x, x_stride, panel, columns, sums, to);
    default:
      return;
  }
}

}  // namespace glimpse::cpu

#else

#include "base/check.h"

namespace glimpse::cpu {

bool has_bf16_dot() {
  return false;
}
void multiply_bf16_row(const BFloat16*, int64_t, int64_t, const BFloat16*, int64_t, float*) {
  check(false, "this processor has no bf16 products");
}
void multiply_fp8_row(const BFloat16*, int64_t, int64_t, const Float8E4M3*, const float*, int64_t,
                      float*) {
  check(false, "this processor has no bf16 products");
}
void interleave_for_fp8(const BFloat16*, int64_t, BFloat16*) {
  check(false, "this processor has no bf16 products");
}
void pack_panel(const Float8E4M3*, int64_t, int64_t, int64_t, BFloat16*) {
  check(false, "this processor has no bf16 products");
}
void pack_panel(const BFloat16*, int64_t, int64_t, int64_t, BFloat16*) {
  check(false, "this processor has no bf16 products");
}
void pack_columns(const BFloat16*, int64_t, int64_t, int64_t, BFloat16*) {
  check(false, "this processor has no bf16 products");
}
void multiply_panel(const BFloat16*, int64_t, int64_t, const BFloat16*, int64_t, const PanelSums&) {
  check(false, "this processor has no bf16 products");
}
void pack_panel_avx512(const float*, int64_t, int64_t, int64_t, float*) {
  check(false, "this processor has no bf16 products");
}

}  // namespace glimpse::cpu
#endif
