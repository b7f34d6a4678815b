// One block's work in attention: 128 rows of queries, four warps of 32, against a tile of keys at a
// time, with a running maximum and sum (softmax in base 2). Scores never leave registers: the
// layout of the sum of q k^T is the layout of the left operand of p v. A warp has 32 rows because
// with 16 the reads of K and V from shared memory would take longer than the products.
#pragma once

#include <cmath>

#include "cuda/tensor_core.cuh"

namespace glimpse::cuda {

inline constexpr int kAttentionRows = 128;
inline constexpr int kAttentionThreads = 128;

template <int kHeadDim, int kKeys>
class AttentionTile {
 public:
  /// Padded with zeros to whole products.
  static constexpr int kPaddedDim = (kHeadDim + 15) / 16 * 16;
  static constexpr int kRowBytes = kPaddedDim * 2;
  static constexpr int kChunks = kRowBytes / 16;         // of a row in shared memory
  static constexpr int kUsedChunks = kHeadDim * 2 / 16;  // of a row in global memory
  static constexpr int kTileBytes = kKeys * kRowBytes;
  static constexpr int kQueryBytes = kAttentionRows * kRowBytes;
  static_assert(kHeadDim % 8 == 0);

  /// Position of a 16-byte chunk: eight rows at one chunk touch all banks.
  __device__ static int position(int row, int chunk) {
    if constexpr (kRowBytes % 128 == 0) {
      return row * kRowBytes + ((chunk & ~7) + ((chunk ^ row) & 7)) * 16;
    } else {
      static_assert(kRowBytes == 160 || kRowBytes % 128 == 0);
      return row * kRowBytes + (chunk ^ (row >> 2 & 1)) * 16;
    }
  }

  __device__ explicit AttentionTile(float scale)
      : lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        scale_(scale * 1.4426950408889634F),
        by_chunk_(lane_ % 8 + lane_ / 16 * 8, lane_ / 8 % 2),
        by_row_(lane_ % 16, lane_ / 16) {
#pragma unroll
    for (int r = 0; r < 4; ++r) offset_[r] = -INFINITY, sum_[r] = 0.0F;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < kTilesD; ++n) {
#pragma unroll
        for (float& value : out_[i][n]) value = 0.0F;
      }
    }
  }

  /// Row of the block that register row r (0..3) of this lane stands for.
  [[nodiscard]] __device__ int row_of(int r) const {
    return warp_ * 32 + r * 8 + lane_ / 4;
  }

  /// Queries are read once into registers where there is room for them, else at each tile.
  __device__ void load_queries(uint32_t queries) {
    queries_ = queries;
    if constexpr (kQueriesInRegisters) {
#pragma unroll
      for (int step = 0; step < kStepsD; ++step) load_query_step(step, q_[step]);
    }
  }

  /// One tile of keys and values in shared memory. Where `is_masked`, row r sees the first
  /// limit(r) keys of this tile.
  template <typename Limit>
  __device__ void attend(uint32_t keys, uint32_t values, bool is_masked, Limit limit) {
    float scores[2][kTilesK][4] = {};
    multiply_queries(keys, scores);
    if (is_masked) mask(scores, limit);
    softmax(scores);
    multiply_values(values, scores);
  }

  /// The running scores of a software pipeline: those of one tile of keys.
  struct Scores {
    float values[2][kKeys / 8][4];
  };

  /// The first tile of keys of a pipeline; follow with advance() for every tile.
  template <typename Limit>
  __device__ void begin(uint32_t keys, bool is_masked, Limit limit, Scores& scores) {
    clear(scores);
    multiply_queries(keys, scores.values);
    if (is_masked) mask(scores.values, limit);
    raise_maximum(scores.values);
  }

  /// attend() for a warp that is one of few: the products of the next tile's keys are between the
  /// exponentials of this one's scores, and the next maximum is beside the products with the
  /// values, so that the tensor cores do not wait for the softmax.
  template <typename Limit>
  __device__ void advance(uint32_t values, Scores& scores, uint32_t next_keys, bool next_is_masked,
                          Limit next_limit, Scores& next) {
    static_assert(kQueriesInRegisters);
    clear(next);
    constexpr int kParts = kTilesK / 2 * kStepsD;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int n = part / kStepsD * 2;
      const int step = part % kStepsD;
      uint32_t k[4];
      load_matrix_x4(k, by_chunk_.at(next_keys, n * 8, 2 * step));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        multiply_add(next.values[i][n], q_[step][i], k[0], k[1]);
        multiply_add(next.values[i][n + 1], q_[step][i], k[2], k[3]);
      }
      constexpr int kScores = 8 * kTilesK;
#pragma unroll
      for (int s = kScores * part / kParts; s < kScores * (part + 1) / kParts; ++s) {
        const int r = s / 2 % 4;
        float& score = scores.values[r / 2][s / 8][r % 2 * 2 + s % 2];
        score = exp2f_fast(fmaf(score, scale_, -offset_[r]));
        sum_[r] += score;
      }
    }
    if (next_is_masked) mask(next.values, next_limit);
    multiply_values(values, scores.values);
    raise_maximum(next.values);
  }

  /// The pipeline's last tile.
  __device__ void finish(uint32_t values, Scores& scores) {
    exponentiate(scores.values);
    multiply_values(values, scores.values);
  }

  /// Divides by the sums and stores rows for which `row_pointer(r)` is not null.
  template <typename RowPointer>
  __device__ void store(RowPointer row_pointer) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float total = sum_[r];
      total += __shfl_xor_sync(0xffffffffU, total, 1);
      total += __shfl_xor_sync(0xffffffffU, total, 2);
      const float factor = 1.0F / total;
      __nv_bfloat16* to = row_pointer(r);
      if (to == nullptr) continue;
#pragma unroll
      for (int n = 0; n < kTilesD; ++n) {
        const float(&value)[4] = out_[r / 2][n];
        *reinterpret_cast<uint32_t*>(to + n * 8 + lane_ % 4 * 2) =
            pack_bf16(value[r % 2 * 2] * factor, value[r % 2 * 2 + 1] * factor);
      }
    }
  }

 private:
  /// Where a lane's row of an 8x8 matrix is: row `row` of a group of 16, chunk 2c or 2c + 1. All
  /// groups and chunks are then a constant or one exclusive-or away, which keeps registers free.
  struct LaneAddress {
    int row_bytes, chunk_bytes;
    __device__ LaneAddress(int row, int odd)
        : row_bytes(row * kRowBytes),
          chunk_bytes((odd ^ (kRowBytes % 128 == 0 ? row & 7 : row >> 2 & 1)) * 16) {}
    [[nodiscard]] __device__ uint32_t at(uint32_t tile, int first_row, int even_chunk) const {
      const int chunk = kRowBytes % 128 == 0
                            ? (even_chunk & ~7) * 16 + (chunk_bytes ^ ((even_chunk & 7) * 16))
                            : even_chunk * 16 + chunk_bytes;
      return tile + first_row * kRowBytes + row_bytes + chunk;
    }
  };

  static constexpr int kStepsD = kPaddedDim / 16;
  static constexpr int kTilesD = kHeadDim / 8;
  static constexpr int kTilesK = kKeys / 8;
  static constexpr bool kQueriesInRegisters = kHeadDim <= 80;

  __device__ void load_query_step(int step, uint32_t (&q)[2][4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load_matrix_x4(q[i], by_row_.at(queries_ + warp_ * 32 * kRowBytes, i * 16, 2 * step));
    }
  }

  __device__ void multiply_queries(uint32_t keys, float (&scores)[2][kTilesK][4]) {
#pragma unroll
    for (int step = 0; step < kStepsD; ++step) {
      uint32_t loaded[2][4];
      if constexpr (!kQueriesInRegisters) load_query_step(step, loaded);
      const auto& q = kQueriesInRegisters ? q_[step] : loaded;
#pragma unroll
      for (int n = 0; n < kTilesK; n += 2) {
        uint32_t k[4];
        load_matrix_x4(k, by_chunk_.at(keys, n * 8, 2 * step));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply_add(scores[i][n], q[i], k[0], k[1]);
          multiply_add(scores[i][n + 1], q[i], k[2], k[3]);
        }
      }
    }
  }

  template <typename Limit>
  __device__ void mask(float (&scores)[2][kTilesK][4], Limit limit) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int keys = limit(r) - lane_ % 4 * 2;
#pragma unroll
      for (int n = 0; n < kTilesK; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (n * 8 + e >= keys) scores[r / 2][n][r % 2 * 2 + e] = -INFINITY;
        }
      }
    }
  }

  __device__ static void clear(Scores& scores) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < kTilesK; ++n) {
#pragma unroll
        for (float& value : scores.values[i][n]) value = 0.0F;
      }
    }
  }

  /// Scores become probabilities relative to the running maximum.
  __device__ void softmax(float (&scores)[2][kTilesK][4]) {
    raise_maximum(scores);
    exponentiate(scores);
  }

  __device__ void exponentiate(float (&scores)[2][kTilesK][4]) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int n = 0; n < kTilesK; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[r / 2][n][r % 2 * 2 + e];
          score = exp2f_fast(fmaf(score, scale_, -offset_[r]));
          sum_[r] += score;
        }
      }
    }
  }

  /// Exponents are taken from an offset that the maximum has not left by much: probabilities up to
  /// 2^kHeadroom are as exact in f32 and bf16 as those up to 1, and a new offset means that all
  /// sums are rescaled. After the first tiles that is rare.
  __device__ void raise_maximum(const float (&scores)[2][kTilesK][4]) {
    constexpr float kHeadroom = 8.0F;
    float highest[4];  // of this lane's scores
    bool is_far_above = false;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      highest[r] = -INFINITY;
#pragma unroll
      for (int n = 0; n < kTilesK; ++n) {
        const float(&s)[4] = scores[r / 2][n];
        highest[r] = fmaxf(highest[r], fmaxf(s[r % 2 * 2], s[r % 2 * 2 + 1]));
      }
      is_far_above |= fmaf(highest[r], scale_, -offset_[r]) > kHeadroom;
    }
    if (!__any_sync(0xffffffffU, is_far_above)) return;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      highest[r] = fmaxf(highest[r], __shfl_xor_sync(0xffffffffU, highest[r], 1));
      highest[r] = fmaxf(highest[r], __shfl_xor_sync(0xffffffffU, highest[r], 2));
      const float raised = fmaxf(offset_[r], highest[r] * scale_);
      const float factor = exp2f_fast(offset_[r] - raised);
      offset_[r] = raised;
      sum_[r] *= factor;
#pragma unroll
      for (int n = 0; n < kTilesD; ++n) {
        out_[r / 2][n][r % 2 * 2] *= factor;
        out_[r / 2][n][r % 2 * 2 + 1] *= factor;
      }
    }
  }

  __device__ static float exp2f_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }

  __device__ void multiply_values(uint32_t values, const float (&scores)[2][kTilesK][4]) {
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      uint32_t p[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float(&s)[4] = scores[i][2 * step + half];
          p[i][2 * half] = pack_bf16(s[0], s[1]);
          p[i][2 * half + 1] = pack_bf16(s[2], s[3]);
        }
      }
#pragma unroll
      for (int n = 0; n + 1 < kTilesD; n += 2) {
        uint32_t v[4];
        load_matrix_x4_transposed(v, by_row_.at(values, step * 16, n));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply_add(out_[i][n], p[i], v[0], v[1]);
          multiply_add(out_[i][n + 1], p[i], v[2], v[3]);
        }
      }
      if constexpr (kTilesD % 2 != 0) {
        uint32_t v[2];
        load_matrix_x2_transposed(v, by_row_.at(values, step * 16, kTilesD - 1));
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply_add(out_[i][kTilesD - 1], p[i], v[0], v[1]);
      }
    }
  }

  const int lane_, warp_;
  const float scale_;  // of the scores, times log2(e)
  const LaneAddress by_chunk_, by_row_;
  uint32_t queries_ = 0;
  uint32_t q_[kQueriesInRegisters ? kStepsD : 1][2][4];
  float offset_[4], sum_[4];  // offsets: maxima times scale_, or a little less
  float out_[2][kTilesD][4];
};

}  // namespace glimpse::cuda
