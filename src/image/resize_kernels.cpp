// A pair of samples is multiplied with a pair of 16-bit weights and added in one instruction
// (pmaddwd and its kin), so samples that share an output are brought side by side: for a row by
// shuffling two RGB pixels into channel pairs, for a column by interleaving two rows.
#include "image/resize_kernels.h"

#include <algorithm>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "image/resize_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

HWY_INLINE uint8_t to_byte(int32_t sum, int precision) {
  return static_cast<uint8_t>(std::clamp(sum >> precision, 0, 255));
}

// Bytes that fill no vector, and all of them where there are no vectors.
HWY_INLINE void blend_rows_plain(const uint8_t* rows, size_t row_bytes, const AxisWeights& axis,
                                 int output, uint8_t* out) {
  const int16_t* weights = axis.of(output);
  for (size_t i = 0; i < row_bytes; ++i) {
    int32_t sum = 1 << (axis.precision - 1);
    for (int j = 0; j < axis.count[output]; ++j) sum += weights[j] * rows[j * row_bytes + i];
    out[i] = to_byte(sum, axis.precision);
  }
}

#if HWY_TARGET == HWY_SCALAR  // one lane: neither shuffles nor pairs

HWY_NOINLINE void resize_row_simd(const uint8_t* row, const AxisWeights& axis, int width,
                                  uint8_t* out) {
  for (int x = 0; x < width; ++x, out += 3) {
    const int16_t* weights = axis.of(x);
    const uint8_t* source = row + static_cast<size_t>(axis.first[x]) * 3;
    for (int channel = 0; channel < 3; ++channel) {
      int32_t sum = 1 << (axis.precision - 1);
      for (int j = 0; j < axis.count[x]; ++j) sum += weights[j] * source[3 * j + channel];
      out[channel] = to_byte(sum, axis.precision);
    }
  }
}

HWY_NOINLINE void blend_rows_simd(const uint8_t* rows, size_t row_bytes, const AxisWeights& axis,
                                  int output, uint8_t* out) {
  blend_rows_plain(rows, row_bytes, axis, output, out);
}

#else

// Two neighbouring weights as one 32-bit lane.
HWY_INLINE int32_t weight_pair(int16_t first, int16_t second) {
  const int16_t pair[2] = {first, second};
  int32_t lane = 0;
  std::memcpy(&lane, pair, sizeof lane);
  return lane;
}

// One output pixel at a time in the lanes r, g, b of a 128-bit vector, four source pixels a step:
// 16 bytes are loaded of which 12 are used, hence the padding behind the row.
HWY_NOINLINE void resize_row_simd(const uint8_t* row, const AxisWeights& axis, int width,
                                  uint8_t* out) {
  const hn::FixedTag<uint8_t, 16> bytes;
  const hn::FixedTag<int16_t, 8> words;
  const hn::FixedTag<int32_t, 4> sums;
  const hn::FixedTag<uint8_t, 4> four_bytes;
  constexpr uint8_t kZero = 0x80;
  alignas(16) static constexpr uint8_t kFirstTwo[16] = {
      0, kZero, 3, kZero, 1, kZero, 4, kZero, 2, kZero, 5, kZero, kZero, kZero, kZero, kZero};
  alignas(16) static constexpr uint8_t kLastTwo[16] = {
      6, kZero, 9, kZero, 7, kZero, 10, kZero, 8, kZero, 11, kZero, kZero, kZero, kZero, kZero};
  const auto first_two = hn::Load(bytes, kFirstTwo);
  const auto last_two = hn::Load(bytes, kLastTwo);
  const auto half = hn::Set(sums, 1 << (axis.precision - 1));
  for (int x = 0; x < width; ++x, out += 3) {
    const int16_t* weights = axis.of(x);
    const uint8_t* source = row + static_cast<size_t>(axis.first[x]) * 3;
    auto sum = half;
    auto sum_rest = hn::Zero(sums);
    for (int j = 0; j < axis.count[x]; j += 4, source += 12) {
      const auto pixels = hn::LoadU(bytes, source);
      const auto early = hn::BitCast(words, hn::TableLookupBytesOr0(pixels, first_two));
      const auto late = hn::BitCast(words, hn::TableLookupBytesOr0(pixels, last_two));
      const auto early_weights =
          hn::BitCast(words, hn::Set(sums, weight_pair(weights[j], weights[j + 1])));
      const auto late_weights =
          hn::BitCast(words, hn::Set(sums, weight_pair(weights[j + 2], weights[j + 3])));
      sum = hn::ReorderWidenMulAccumulate(sums, early, early_weights, sum, sum_rest);
      sum = hn::ReorderWidenMulAccumulate(sums, late, late_weights, sum, sum_rest);
    }
    const auto total = hn::RearrangeToOddPlusEven(sum, sum_rest);
    uint8_t rgb[4];
    hn::StoreU(hn::DemoteTo(four_bytes, hn::ShiftRightSame(total, axis.precision)), four_bytes,
               rgb);
    std::memcpy(out, rgb, 3);
  }
}

HWY_NOINLINE void blend_rows_simd(const uint8_t* rows, size_t row_bytes, const AxisWeights& axis,
                                  int output, uint8_t* out) {
  const hn::ScalableTag<int16_t> words;
  const hn::Rebind<uint8_t, decltype(words)> bytes;  // as many, half the width
  const hn::Repartition<int32_t, decltype(words)> sums;
  const size_t lanes = hn::Lanes(words);
  const int16_t* weights = axis.of(output);
  const int count = axis.count[output];
  const int half = 1 << (axis.precision - 1);
  if (row_bytes < lanes) return blend_rows_plain(rows, row_bytes, axis, output, out);
  for (size_t start = 0; start < row_bytes; start += lanes) {
    // The last vector overlaps the one before it instead of leaving a tail.
    const size_t at = std::min(start, row_bytes - lanes);
    auto low = hn::Set(sums, half);
    auto high = low;
    auto low_rest = hn::Zero(sums);
    auto high_rest = low_rest;
    for (int j = 0; j < count; j += 2) {
      const uint8_t* even_row = rows + j * row_bytes + at;
      const uint8_t* odd_row = j + 1 < count ? even_row + row_bytes : even_row;  // weight 0
      const auto even = hn::PromoteTo(words, hn::LoadU(bytes, even_row));
      const auto odd = hn::PromoteTo(words, hn::LoadU(bytes, odd_row));
      const auto pair = hn::BitCast(words, hn::Set(sums, weight_pair(weights[j], weights[j + 1])));
      low = hn::ReorderWidenMulAccumulate(sums, hn::InterleaveLower(words, even, odd), pair, low,
                                          low_rest);
      high = hn::ReorderWidenMulAccumulate(sums, hn::InterleaveUpper(words, even, odd), pair, high,
                                           high_rest);
    }
    const auto low_sum =
        hn::ShiftRightSame(hn::RearrangeToOddPlusEven(low, low_rest), axis.precision);
    const auto high_sum =
        hn::ShiftRightSame(hn::RearrangeToOddPlusEven(high, high_rest), axis.precision);
    // Packing works within 128-bit blocks, as interleaving did: the order is restored.
    const auto packed = hn::ReorderDemote2To(words, low_sum, high_sum);
    hn::StoreU(hn::DemoteTo(bytes, packed), bytes, out + at);
  }
}

#endif  // HWY_SCALAR

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace glimpse {

HWY_EXPORT(resize_row_simd);
HWY_EXPORT(blend_rows_simd);

void resize_row(const uint8_t* row, const AxisWeights& axis, int width, uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(resize_row_simd)(row, axis, width, out);
}

void blend_rows(const uint8_t* rows, size_t row_bytes, const AxisWeights& axis, int output,
                uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(blend_rows_simd)(rows, row_bytes, axis, output, out);
}

}  // namespace glimpse
#endif  // HWY_ONCE
