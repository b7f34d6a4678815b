// Every operation on every backend against the plain loops: odd shapes, strided views, outputs that
// alias inputs, both activation dtypes.
#include <algorithm>

#include "operation_fixture.h"

namespace glimpse::testing {
namespace {

constexpr DType kActivations[] = {DType::f32, DType::bf16};

TEST_P(Operations, CopyConvertsBetweenActivations) {
  for (const DType from : kActivations) {
    for (const DType to : kActivations) {
      const Pair x = random(from, {7, 33});
      const Pair y = poisoned(to, {7, 33});
      run([&](Backend& b, auto at) { b.copy(at(x), at(y)); });
      expect_equal(y);
    }
  }
}

TEST_P(Operations, GatherRowsTakesTheRowsAsked) {
  for (const DType table : {DType::f32, DType::bf16, DType::f16}) {
    for (const DType out : kActivations) {
      const Pair t = random(table, {11, 40});
      const Pair indices = numbers<int32_t>({10, 0, 3, 3, 7}, {5});
      const Pair y = poisoned(out, {5, 40});
      run([&](Backend& b, auto at) { b.gather_rows(at(t), at(indices), at(y)); });
      expect_equal(y);
    }
  }
}

TEST_P(Operations, ScatterAndAddRowsTouchOnlyTheirRows) {
  for (const DType rows : kActivations) {
    for (const DType out : kActivations) {
      const Pair x = random(rows, {3, 24});
      const Pair indices = numbers<int32_t>({5, 0, 2}, {3});
      const Pair scattered = random(out, {6, 24});
      const Pair added = random(out, {6, 24});
      run([&](Backend& b, auto at) {
        b.scatter_rows(at(x), at(indices), at(scattered));
        b.add_rows(at(x), at(indices), at(added));
      });
      expect_equal(scattered);
      expect_close(added, tolerance(out, 2));
    }
  }
}

TEST_P(Operations, AddMayWriteOverItsInput) {
  for (const DType dtype : kActivations) {
    const Pair x = random(dtype, {5, 37});
    const Pair y = random(dtype, {5, 37});
    run([&](Backend& b, auto at) { b.add(at(x), at(y), at(x)); });
    expect_close(x, tolerance(dtype, 2));
  }
}

TEST_P(Operations, BlendRowsAddsFourWeightedRows) {
  for (const DType table : kActivations) {
    for (const DType out : kActivations) {
      const Pair t = random(table, {9, 48});
      const Pair indices = numbers<int32_t>({0, 1, 2, 3, 8, 8, 8, 8, 4, 5, 0, 7}, {3, 4});
      const Pair weights = random(DType::f32, {3, 4});
      const Pair y = random(out, {3, 48});
      run([&](Backend& b, auto at) { b.blend_rows(at(t), at(indices), at(weights), at(y)); });
      expect_close(y, tolerance(out, 5));
    }
  }
}

struct LinearCase {
  int64_t rows, columns, outputs;
};

// Stills, films whose last frame is missing, sides without packs, and any part of the patches.
TEST_P(Operations, CutPatchesFollowsMergeBlocksAndRepeatsTheLastFrame) {
  struct Case {
    int64_t side, merge, frames, given_frames, rows, columns;  // rows and columns of blocks
  };
  for (const Case& test :
       {Case{16, 2, 2, 1, 3, 5}, Case{16, 2, 2, 2, 2, 3}, Case{14, 2, 2, 3, 2, 2},
        Case{3, 3, 4, 5, 2, 3}, Case{8, 1, 1, 2, 4, 3}}) {
    const int64_t height = test.rows * test.merge * test.side;
    const int64_t width = test.columns * test.merge * test.side;
    std::vector<uint8_t> bytes(static_cast<size_t>(test.given_frames * height * width * 3));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_());
    const Pair pixels = numbers(bytes, {test.given_frames, height, width, 3});
    const Pair table = random(DType::f32, {3, 256});
    const int64_t slices = (test.given_frames + test.frames - 1) / test.frames;
    const int64_t patches = slices * test.rows * test.columns * test.merge * test.merge;
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const int64_t first : {int64_t{0}, patches / 3}) {
        const int64_t count = std::max<int64_t>(1, patches - first - first / 2);
        const Pair out = poisoned(dtype, {count, 3 * test.frames * test.side * test.side});
        run([&](Backend& backend, const auto& of) {
          backend.cut_patches(of(pixels), of(table), {test.side, test.merge, test.frames, first},
                              of(out));
        });
        expect_equal(out);
      }
    }
  }
}

TEST_P(Operations, CutPatchesPutsEachPixelWhereTheModelReadsIt) {
  constexpr int64_t kSide = 16;
  constexpr int64_t kWidth = 96;
  constexpr int64_t kHeight = 64;
  std::vector<uint8_t> bytes(kHeight * kWidth * 3);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_());
  std::vector<float> values(3 * 256);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const Pair pixels = numbers(bytes, {1, kHeight, kWidth, 3});
  const Pair table = pair_of(values, DType::f32, {3, 256});
  const Pair out = poisoned(DType::f32, {24, 3 * 2 * kSide * kSide});
  backend_->cut_patches(pixels.device, table.device, {kSide, 2, 2, 0}, out.device);
  const std::vector<float> got = result(out);
  size_t at = 0;
  for (int64_t patch = 0; patch < 24; ++patch) {
    const int64_t block = patch / 4;
    const int64_t top = (block / 3 * 2 + patch % 4 / 2) * kSide;
    const int64_t left = (block % 3 * 2 + patch % 2) * kSide;
    for (int64_t channel = 0; channel < 3; ++channel) {
      for (int t = 0; t < 2; ++t) {
        for (int64_t y = top; y < top + kSide; ++y) {
          for (int64_t x = left; x < left + kSide; ++x) {
            const uint8_t byte = bytes[static_cast<size_t>((y * kWidth + x) * 3 + channel)];
            ASSERT_EQ(got[at], static_cast<float>(256 * channel + byte)) << at;
            ++at;
          }
        }
      }
    }
  }
}

TEST_P(Operations, CutPatchesRefusesWhatIsNotMadeOfWholeBlocks) {
  const Pair table = random(DType::f32, {3, 256});
  const Pair out = poisoned(DType::f32, {4, 1536});
  const auto cut = [&](int64_t height, int64_t width, int64_t first) {
    const std::vector<uint8_t> bytes(static_cast<size_t>(height * width * 3));
    const Pair pixels = numbers(bytes, {1, height, width, 3});
    backend_->cut_patches(pixels.device, table.device, {16, 2, 2, first}, out.device);
  };
  EXPECT_NO_THROW(cut(32, 64, 4));
  EXPECT_THROW(cut(32, 64, 5), Error);
  EXPECT_THROW(cut(48, 64, 0), Error);
  EXPECT_THROW(cut(32, 63, 0), Error);
}

TEST_P(Operations, LinearMatchesForEveryStorageAndShape) {
  for (const LinearCase& c : {LinearCase{1, 128, 16},
                              {1, 384, 100},
                              {2, 256, 40},
                              {3, 400, 77},
                              {4, 1024, 48},
                              {5, 128, 8},
                              {17, 304, 128},
                              {66, 256, 200},
                              {130, 640, 264}}) {
    for (const DType stored : {DType::f32, DType::f16, DType::bf16, DType::f8_e4m3}) {
      for (const DType dtype : kActivations) {
        for (const DType out : kActivations) {
          SCOPED_TRACE(fmt::format("{} rows x {} columns -> {} outputs, {} weights, {} to {}",
                                   c.rows, c.columns, c.outputs, name_of(stored), name_of(dtype),
                                   name_of(out)));
          const LinearPart part = linear_part(stored, c.outputs, c.columns, true);
          const Pair x = random(dtype, {c.rows, c.columns});
          const Pair y = poisoned(out, {c.rows, c.outputs});
          const Pair sum = random(out, {c.rows, c.outputs});
          run([&](Backend& b, auto at) {
            const LinearWeight weight = weight_of(b, {part}, LinearLayout::plain);
            b.linear(at(x), weight, at(y));
            b.linear_add(at(x), weight, at(sum));
          });
          // With bf16 activations a weight may be rounded to bf16 after scaling: half a unit of
          // 2^-8 on each of the terms, whose signs differ.
          // CUDA keeps F32 and F16 weights as bf16 whatever multiplies them.
          const bool rounds =
              dtype == DType::bf16 ||
              (GetParam() == "cuda" && (stored == DType::f32 || stored == DType::f16));
          const double weights = rounds ? 0x1p-8 : 0;
          expect_close(y, tolerance(out, c.columns) + weights);
          expect_close(sum, tolerance(out, c.columns) + weights);
        }
      }
    }
  }
}

TEST_P(Operations, LinearStacksItsPartsAndReadsStridedRows) {
  for (const DType dtype : kActivations) {
    const std::vector<LinearPart> parts = {linear_part(DType::f8_e4m3, 256, 256, false),
                                           linear_part(DType::f8_e4m3, 128, 256, false),
                                           linear_part(DType::f8_e4m3, 128, 256, false)};
    for (const int64_t rows : {1, 9}) {
      const Pair wide = random(dtype, {rows, 512});
      const Pair y = poisoned(dtype, {rows, 512});
      run([&](Backend& b, auto at) {
        b.linear(at(wide).slice(1, 256, 256), weight_of(b, parts, LinearLayout::plain), at(y));
      });
      expect_close(y, tolerance(dtype, 256) + (dtype == DType::bf16 ? 0x1p-8 : 0));
    }
  }
}

TEST_P(Operations, LinearGeluEqualsItsTwoSteps) {
  for (const DType stored : {DType::bf16, DType::f8_e4m3}) {
    for (const DType dtype : kActivations) {
      for (const GeluKind kind : {GeluKind::tanh_approximation, GeluKind::exact_erf}) {
        for (const int64_t rows : {1, 7, 65}) {
          const LinearPart part = linear_part(stored, 304, 256, true);
          const Pair x = random(dtype, {rows, 256});
          const Pair y = poisoned(dtype, {rows, 304});
          run([&](Backend& b, auto at) {
            b.linear_gelu(at(x), weight_of(b, {part}, LinearLayout::plain), kind, at(y));
          });
          expect_close(y, 2 * tolerance(dtype, 256) + (dtype == DType::bf16 ? 0x1p-7 : 0));
        }
      }
    }
  }
}

TEST_P(Operations, LinearRotateEqualsItsTwoSteps) {
  struct Case {
    int64_t heads, rotated, head_dim;
  };
  // Heads of 64 are what a fused product takes; those of 72 and a projection that ends inside a
  // block of features are not.
  for (const Case& c : {Case{6, 4, 64}, Case{3, 3, 64}, Case{3, 2, 72}, Case{5, 2, 16}}) {
    for (const DType stored : {DType::bf16, DType::f8_e4m3}) {
      for (const DType dtype : kActivations) {
        for (const int64_t rows : {1, 7, 65, 131}) {
          const int64_t out = c.heads * c.head_dim;
          const LinearPart part = linear_part(stored, out, 256, true);
          const Pair x = random(dtype, {rows, 256});
          const Pair cosines = random(DType::f32, {rows, c.head_dim / 2});
          const Pair sines = random(DType::f32, {rows, c.head_dim / 2});
          const Pair y = poisoned(dtype, {rows, out});
          run([&](Backend& b, auto at) {
            b.linear_rotate(at(x), weight_of(b, {part}, LinearLayout::plain),
                            {at(cosines), at(sines), c.rotated}, at(y));
          });
          // Rounded before the rotation and after it; random sines turn by up to a factor of four.
          expect_close(y, 8 * tolerance(dtype, 256) + (dtype == DType::bf16 ? 0x1p-6 : 0));
        }
      }
    }
  }
}

TEST_P(Operations, LinearSiluMulEqualsItsThreeSteps) {
  for (const DType stored : {DType::bf16, DType::f8_e4m3}) {
    for (const DType dtype : kActivations) {
      for (const int64_t rows : {1, 4, 7, 65}) {
        const std::vector<LinearPart> parts = {linear_part(stored, 256, 384, false),
                                               linear_part(stored, 256, 384, false)};
        const Pair x = random(dtype, {rows, 384});
        const Pair scratch = poisoned(dtype, {rows > 7 ? 24 : rows, 512});
        const Pair y = poisoned(dtype, {rows, 256});
        run([&](Backend& b, auto at) {
          b.linear_silu_mul(at(x), weight_of(b, parts, LinearLayout::gate_up), at(scratch), at(y));
        });
        expect_close(y, 4 * tolerance(dtype, 384) + (dtype == DType::bf16 ? 0x1p-6 : 0));
      }
    }
  }
}

TEST_P(Operations, NormsWorkOnHeadsInsideAFusedProjection) {
  for (const DType dtype : kActivations) {
    const Pair fused = random(dtype, {5, 8 * 128});
    const Pair weight = random(DType::f32, {128});
    run([&](Backend& b, auto at) {
      const Tensor heads = at(fused).slice(1, 256, 4 * 128).split_last(4);
      b.rms_norm(heads, at(weight), 1e-6F, heads);
    });
    expect_close(fused, tolerance(dtype, 128));
  }
}

TEST_P(Operations, NormsMatchOnOddRowsAndMixedDtypes) {
  for (const int64_t dim : {1, 33, 144, 1024, 2560}) {
    for (const DType in : kActivations) {
      for (const DType out : kActivations) {
        const Pair x = random(in, {3, dim}, 4.0F);
        const Pair weight = random(DType::f32, {dim});
        const Pair bias = random(DType::f32, {dim});
        const Pair rms = poisoned(out, {3, dim});
        const Pair layer = poisoned(out, {3, dim});
        run([&](Backend& b, auto at) {
          b.rms_norm(at(x), at(weight), 1e-6F, at(rms));
          b.layer_norm(at(x), at(weight), at(bias), 1e-6F, at(layer));
        });
        expect_close(rms, tolerance(out, dim));
        expect_close(layer, 2 * tolerance(out, dim));
      }
    }
  }
}

TEST_P(Operations, ActivationFunctionsMatchFarFromZeroToo) {
  for (const DType dtype : kActivations) {
    std::vector<float> values;
    for (int i = 0; i < 300; ++i) values.push_back(draw(3.0F));
    for (const float x : {0.0F, -0.0F, 90.0F, -90.0F, 1e4F, -1e4F, 3e30F, -3e30F}) {
      values.push_back(x);
    }
    const auto count = static_cast<int64_t>(values.size());
    for (const GeluKind kind : {GeluKind::tanh_approximation, GeluKind::exact_erf}) {
      const Pair x = pair_of(values, dtype, {1, count});
      const Pair y = poisoned(dtype, {1, count});
      run([&](Backend& b, auto at) {
        b.gelu(at(x).slice(1, 0, count - 2), kind, at(y).slice(1, 0, count - 2));
      });
      run([&](Backend& b, auto at) {
        b.gelu(at(x).slice(1, count - 2, 2), kind, at(y).slice(1, count - 2, 2));
      });
      const std::vector<float> expected = floats(y.host);
      const std::vector<float> got = result(y);
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(
            got[i], expected[i],
            (dtype == DType::bf16 ? 0x1p-7 : 0x1p-20) * std::max(1.0F, std::fabs(expected[i])))
            << values[i];
      }
    }
    const Pair gate_up = pair_of(values, dtype, {2, count / 2});
    const Pair out = poisoned(dtype, {2, count / 4});
    run([&](Backend& b, auto at) { b.silu_mul(at(gate_up), at(out)); });
    const std::vector<float> expected = floats(out.host);
    const std::vector<float> got = result(out);
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(
          got[i], expected[i],
          (dtype == DType::bf16 ? 0x1p-7 : 0x1p-19) * std::max(1.0F, std::fabs(expected[i])));
    }
  }
}

TEST_P(Operations, RotaryTableFollowsTheAxisOfEachFrequency) {
  const Pair positions = numbers<int32_t>({0, 5, 900, 1, 6, 901, 2, 7, 100000}, {3, 3});
  const Pair frequencies = pair_of({1.0F, 0.1F, 0.01F, 1e-5F}, DType::f32, {4});
  const Pair axes = numbers<int32_t>({0, 1, 2, 0}, {4});
  const Pair cosines = poisoned(DType::f32, {3, 4});
  const Pair sines = poisoned(DType::f32, {3, 4});
  run([&](Backend& b, auto at) {
    b.rotary_table(at(positions), at(frequencies), at(axes), at(cosines), at(sines));
  });
  expect_close(cosines, 2e-6);
  expect_close(sines, 2e-6);
}

TEST_P(Operations, BeginStepTakesTheTokensGivenAndThoseChosenLast) {
  for (const DType table : {DType::f32, DType::bf16, DType::f16}) {
    for (const int64_t dim : {40, 41, 2560}) {
      const Pair t = random(table, {11, dim});
      const Pair ids = numbers<int32_t>({10, -1, 0, -3, 7}, {5});
      const Pair chosen = numbers<int32_t>({4, 5, 6}, {3});
      const Pair positions = numbers<int32_t>({0, 5, 900, 2, 3, 1, 6, 901, 2, 3}, {2, 5});
      const Pair frequencies = pair_of({1.0F, 0.1F, 0.01F}, DType::f32, {3});
      const Pair axes = numbers<int32_t>({0, 1, 0}, {3});
      const Pair hidden = poisoned(DType::f32, {5, dim});
      const Pair cosines = poisoned(DType::f32, {5, 3});
      const Pair sines = poisoned(DType::f32, {5, 3});
      run([&](Backend& b, auto at) {
        b.begin_step({.table = at(t),
                      .ids = at(ids),
                      .chosen = at(chosen),
                      .positions = at(positions),
                      .inverse_frequencies = at(frequencies),
                      .axes = at(axes)},
                     at(hidden), at(cosines), at(sines));
      });
      expect_equal(hidden);
      expect_close(cosines, 2e-6);
      expect_close(sines, 2e-6);
      const Pair resolved = numbers<int32_t>({10, 4, 0, 6, 7}, {5});
      const Pair expected = poisoned(DType::f32, {5, dim});
      run([&](Backend& b, auto at) { b.gather_rows(at(t), at(resolved), at(expected)); });
      EXPECT_EQ(floats(hidden.host), floats(expected.host));
    }
  }
}

TEST_P(Operations, RmsNormRowsIsTheNormOfTheRowsAsked) {
  for (const DType x_dtype : kActivations) {
    for (const int64_t dim : {128, 2048, 4097}) {
      const Pair x = random(x_dtype, {6, dim});
      const Pair indices = numbers<int32_t>({5, 0, 0, 3}, {4});
      const Pair weight = random(DType::f32, {dim});
      const Pair y = poisoned(DType::bf16, {4, dim});
      run([&](Backend& b, auto at) {
        b.rms_norm_rows(at(x), at(indices), at(weight), 1e-6F, at(y));
      });
      expect_close(y, tolerance(DType::bf16, dim));
    }
  }
}

TEST_P(Operations, RotateTurnsPairsInPlaceInsideAFusedProjection) {
  for (const DType dtype : kActivations) {
    for (const int64_t dim : {64, 72, 128}) {
      const Pair fused = random(dtype, {5, 6 * dim});
      const Pair cosines = random(DType::f32, {5, dim / 2});
      const Pair sines = random(DType::f32, {5, dim / 2});
      run([&](Backend& b, auto at) {
        const Tensor heads = at(fused).slice(1, dim, 3 * dim).split_last(3);
        b.rotate(heads, at(cosines), at(sines), heads);
      });
      expect_close(fused, tolerance(dtype, 2));
    }
  }
}

TEST_P(Operations, PackedAttentionStaysInsideItsSegments) {
  for (const DType dtype : kActivations) {
    for (const int64_t dim : {64, 72, 128}) {
      const std::vector<int64_t> segments = {0, 1, 36, 36, 103};
      const int64_t rows = segments.back();
      const Pair qkv = random(dtype, {rows, 3 * 2 * dim});
      const Pair out = poisoned(dtype, {rows, 2 * dim});
      run([&](Backend& b, auto at) {
        const auto part = [&](int64_t i) {
          return at(qkv).slice(1, i * 2 * dim, 2 * dim).split_last(2);
        };
        b.attend_packed(part(0), part(1), part(2), segments, at(out).split_last(2));
      });
      // bf16 weights of the softmax are rounded before they meet the values.
      expect_close(out, tolerance(dtype, 103) + (dtype == DType::bf16 ? 0x1p-7 : 0));
    }
  }
}

struct PagedCase {
  std::vector<int32_t> queries, contexts;
  int64_t heads, kv_heads, dim;
};

TEST_P(Operations, PagedAttentionSeesItsOwnPastAndNothingElse) {
  const PagedCase cases[] = {{{1, 1, 1}, {1, 33, 150}, 4, 2, 128},
                             {{7, 1, 40}, {7, 64, 97}, 4, 1, 128},
                             {{33}, {65}, 2, 2, 64},
                             {{2, 3}, {32, 35}, 8, 2, 128},
                             {{70, 1}, {200, 300}, 4, 2, 128}};
  for (const PagedCase& c : cases) {
    for (const auto& [dtype, cache] : {std::pair{DType::f32, DType::f32},
                                       {DType::bf16, DType::bf16},
                                       {DType::bf16, DType::f8_e4m3}}) {
      const auto sequences = static_cast<int64_t>(c.queries.size());
      const int64_t max_pages = 10;
      const int64_t pages = sequences * max_pages + 2;
      // Pages dealt out backwards: their order must not matter.
      std::vector<int32_t> table;
      for (int64_t i = 0; i < sequences * max_pages; ++i) {
        table.push_back(static_cast<int32_t>(pages - 1 - i));
      }
      std::vector<int32_t> begin = {0};
      for (const int32_t n : c.queries) begin.push_back(begin.back() + n);
      const Pair keys = random(cache, {pages, c.kv_heads, kKvPageTokens, c.dim});
      const Pair values = random(cache, {pages, c.kv_heads, kKvPageTokens, c.dim});
      const Pair scales =
          pair_of(std::vector<float>(static_cast<size_t>(pages * c.kv_heads * kKvPageTokens), 0.5F),
                  DType::f32, {pages, c.kv_heads, kKvPageTokens});
      const Pair query_begin = numbers<int32_t>(begin, {sequences + 1});
      const Pair context = numbers<int32_t>(c.contexts, {sequences});
      const Pair page_table = numbers<int32_t>(table, {sequences, max_pages});
      const Pair q = random(dtype, {begin.back(), c.heads * c.dim});
      run([&](Backend& b, auto at) {
        const PagedKv kv{at(keys), at(values), at(scales), at(scales)};
        const PagedSpans spans{at(query_begin), at(context), at(page_table),
                               *std::max_element(c.queries.begin(), c.queries.end()), 320};
        const Tensor heads = at(q).split_last(c.heads);
        b.attend_paged(heads, kv, spans, heads);
      });
      expect_close(q, tolerance(dtype, 300) + (dtype == DType::bf16 ? 0x1p-7 : 0));
    }
  }
}

TEST_P(Operations, StoreKvWritesSlotsAndSkipsPadding) {
  for (const DType cache : {DType::f32, DType::bf16}) {
    for (const DType dtype : kActivations) {
      const Pair fused = random(dtype, {4, 6 * 128});
      const Pair keys = random(cache, {3, 2, kKvPageTokens, 128});
      const Pair values = random(cache, {3, 2, kKvPageTokens, 128});
      const Pair slots = numbers<int32_t>({95, 0, -1, 33}, {4});
      run([&](Backend& b, auto at) {
        b.store_kv(at(fused).slice(1, 0, 256).split_last(2),
                   at(fused).slice(1, 256, 256).split_last(2), at(slots),
                   PagedKv{at(keys), at(values), {}, {}});
      });
      expect_equal(keys);
      expect_equal(values);
    }
  }
}

TEST_P(Operations, AnFp8CacheKeepsEachHeadWithinItsStep) {
  const Pair k = random(DType::bf16, {3, 2 * 128}, 5.0F);
  const Pair v = random(DType::bf16, {3, 2 * 128});
  const Pair keys = poisoned(DType::f8_e4m3, {1, 2, kKvPageTokens, 128});
  const Pair values = poisoned(DType::f8_e4m3, {1, 2, kKvPageTokens, 128});
  const Pair key_scales = poisoned(DType::f32, {1, 2, kKvPageTokens});
  const Pair value_scales = poisoned(DType::f32, {1, 2, kKvPageTokens});
  const Pair slots = numbers<int32_t>({0, 31, 7}, {3});
  run([&](Backend& b, auto at) {
    b.store_kv(at(k).split_last(2), at(v).split_last(2), at(slots),
               PagedKv{at(keys), at(values), at(key_scales), at(value_scales)});
  });
  const Tensor codes = host_tensor(DType::f8_e4m3, keys.host.num_bytes(), keys.host.shape());
  backend_->download(keys.device, {codes.raw(), static_cast<size_t>(codes.num_bytes())});
  const std::vector<float> scales = result(key_scales);
  const int32_t tokens[] = {0, 31, 7};
  for (int t = 0; t < 3; ++t) {
    for (int h = 0; h < 2; ++h) {
      const int entry = h * kKvPageTokens + tokens[t];
      for (int i = 0; i < 128; ++i) {
        const float stored = to_float(codes.data<Float8E4M3>()[entry * 128 + i]) *
                             scales[static_cast<size_t>(entry)];
        const float given = to_float(k.host.data<BFloat16>()[t * 256 + h * 128 + i]);
        // Half a step of three mantissa bits, or of the smallest exponent.
        ASSERT_NEAR(stored, given,
                    std::fabs(given) / 15 + scales[static_cast<size_t>(entry)] / 512);
      }
    }
  }
}

class Sampling : public Operations {
 protected:
  struct Row {
    float temperature = 1, top_p = 1, min_p = 0, uniform = 0.5F;
    float repetition = 1, presence = 0, frequency = 0;
    int32_t top_k = 0, counts = -1, mask = -1;
  };

  void sample(const std::vector<float>& logits, int64_t vocabulary, const std::vector<Row>& rows,
              const std::vector<uint16_t>& counts = {}, const std::vector<uint32_t>& allowed = {}) {
    const auto n = static_cast<int64_t>(rows.size());
    const Pair x = pair_of(logits, DType::f32, {n, vocabulary});
    const auto column = [&](auto member) {
      std::vector<float> values;
      for (const Row& row : rows) values.push_back(row.*member);
      return pair_of(values, DType::f32, {n});
    };
    const auto integers = [&](auto member) {
      std::vector<int32_t> values;
      for (const Row& row : rows) values.push_back(row.*member);
      return numbers<int32_t>(values, {n});
    };
    const Pair parameters[] = {column(&Row::temperature), column(&Row::top_p),
                               column(&Row::min_p),       column(&Row::uniform),
                               column(&Row::repetition),  column(&Row::presence),
                               column(&Row::frequency)};
    const Pair top_k = integers(&Row::top_k);
    const Pair counts_row = integers(&Row::counts);
    const Pair mask_row = integers(&Row::mask);
    const int64_t words = (vocabulary + 31) / 32;
    Pair token_counts;
    Pair masks;
    if (!counts.empty()) {
      token_counts =
          numbers<uint16_t>(counts, {static_cast<int64_t>(counts.size()) / vocabulary, vocabulary});
    }
    if (!allowed.empty()) {
      masks = numbers<uint32_t>(allowed, {static_cast<int64_t>(allowed.size()) / words, words});
    }
    ids_ = numbers<int32_t>(std::vector<int32_t>(rows.size(), -7), {n});
    log_probs_ = poisoned(DType::f32, {n});
    run([&](Backend& b, auto at) {
      SamplingRows r;
      r.temperature = at(parameters[0]);
      r.top_p = at(parameters[1]);
      r.min_p = at(parameters[2]);
      r.uniform = at(parameters[3]);
      r.repetition_penalty = at(parameters[4]);
      r.presence_penalty = at(parameters[5]);
      r.frequency_penalty = at(parameters[6]);
      r.top_k = at(top_k);
      r.counts_row = at(counts_row);
      r.mask_row = at(mask_row);
      if (!counts.empty()) r.token_counts = at(token_counts);
      if (!allowed.empty()) r.allowed = at(masks);
      b.sample(at(x), r, at(ids_), at(log_probs_));
    });
  }

  Pair ids_;
  Pair log_probs_;
};

TEST_P(Sampling, EveryRowOfARealVocabularyDrawsTheSameToken) {
  constexpr int64_t kVocabulary = 151936;
  std::vector<Row> rows;
  for (const float uniform : {0.0F, 0.31F, 0.77F, 0.999F}) {
    rows.push_back({.temperature = 0, .uniform = uniform});
    rows.push_back({.temperature = 0.7F, .top_p = 0.8F, .uniform = uniform, .top_k = 20});
    rows.push_back({.temperature = 1.5F, .top_p = 0.95F, .min_p = 0.02F, .uniform = uniform});
  }
  std::vector<float> logits;
  for (size_t i = 0; i < rows.size() * kVocabulary; ++i) logits.push_back(draw(3.0F));
  sample(logits, kVocabulary, rows);
  expect_equal(ids_);
  expect_close(log_probs_, 1e-5);
}

TEST_P(Sampling, OrderOfTopKTopPAndMinPIsTheSpecified) {
  // Probabilities 0.4, 0.3, 0.2, 0.1 at temperature 1.
  const std::vector<float> row = {std::log(0.1F), std::log(0.4F), std::log(0.2F), std::log(0.3F)};
  std::vector<float> logits;
  for (int i = 0; i < 5; ++i) logits.insert(logits.end(), row.begin(), row.end());
  sample(
      logits, 4,
      {{.uniform = 0.95F},                                // everything: the last tenth, token 0
       {.uniform = 0.95F, .top_k = 2},                    // 0.4, 0.3: token 3
       {.top_p = 0.65F, .uniform = 0.95F},                // 0.4, 0.3 reach 0.65: token 3
       {.min_p = 0.45F, .uniform = 0.999F},               // at least 0.18: token 2
       {.top_p = 0.5F, .uniform = 0.999F, .top_k = 3}});  // top-k first, then half of what is left
  expect_equal(ids_);
  EXPECT_EQ(floats(ids_.host), (std::vector<float>{0, 3, 3, 2, 3}));
}

TEST_P(Sampling, PenaltiesAndMasksChangeTheGreedyChoice) {
  const std::vector<float> row = {3.0F, 2.9F, 2.0F, -1.0F};
  std::vector<float> logits;
  for (int i = 0; i < 5; ++i) logits.insert(logits.end(), row.begin(), row.end());
  const std::vector<uint16_t> counts = {0x8000, 0, 0, 0,   // token 0 stands in the prompt
                                        2,      0, 0, 0};  // token 0 was generated twice
  sample(logits, 4,
         {{.temperature = 0},
          {.temperature = 0, .repetition = 1.5F, .counts = 0},  // prompt counts for repetition
          {.temperature = 0, .presence = 1.0F, .counts = 0},    // but not for presence
          {.temperature = 0, .frequency = 0.4F, .counts = 1},
          {.temperature = 0, .mask = 0}},
         counts, {0b1100U});
  expect_equal(ids_);
  EXPECT_EQ(floats(ids_.host), (std::vector<float>{0, 1, 0, 1, 2}));
}

TEST_P(Sampling, EqualLogitsGiveTheLowestId) {
  sample({1, 5, 5, 0, 5, 5, 5, 5}, 4, {{.temperature = 0}, {.temperature = 0}});
  expect_equal(ids_);
  EXPECT_EQ(floats(ids_.host), (std::vector<float>{1, 0}));
}

TEST_P(Sampling, ManyRowsOfAnOddVocabularyChooseTheSameToken) {
  constexpr int64_t kVocabulary = 70'001;
  std::vector<Row> rows(19, {.temperature = 0});
  std::vector<float> logits;
  for (size_t i = 0; i < rows.size() * kVocabulary; ++i) logits.push_back(draw(3.0F));
  sample(logits, kVocabulary, rows);
  expect_equal(ids_);
  expect_close(log_probs_, 1e-5);
}

TEST_P(Sampling, AShortListOfTheBestHoldsAllThatTopKMayKeep) {
  constexpr int64_t kVocabulary = 152'064;
  constexpr int kRows = 12;
  std::vector<Row> rows;
  std::vector<float> logits;
  for (int i = 0; i < kRows; ++i) {
    rows.push_back({.temperature = 1.5F,
                    .uniform = static_cast<float>(i) / kRows,
                    .repetition = 1.2F,
                    .top_k = i % 3 == 0 ? 1 : 5 * i,
                    .counts = i % 4 == 1 ? 0 : -1,
                    .mask = i % 4 == 2 ? 0 : -1});
    for (int64_t id = 0; id < kVocabulary; ++id) logits.push_back(draw(2.0F));
  }
  const auto row_of = [&](int row) { return logits.begin() + row * kVocabulary; };
  std::fill_n(row_of(1) + 500, 40, 12.0F);   // the best are neighbours, and equal
  std::fill_n(row_of(4) + 777, 300, 12.0F);  // more equals than any list holds
  std::fill_n(row_of(5) + 100, 90'000, 9.0F);
  std::vector<uint16_t> counts(kVocabulary);
  for (int64_t id = 0; id < kVocabulary; id += 3) counts[static_cast<size_t>(id)] = 0x8001;
  std::vector<uint32_t> allowed(kVocabulary / 32);
  allowed[7] = 0b1011U;  // fewer tokens than top-k keeps
  sample(logits, kVocabulary, rows, counts, allowed);
  expect_equal(ids_);
  expect_close(log_probs_, 1e-5);
}

// The device goes on while the host reads; what it reads is what was asked for before the mark.
TEST_P(Sampling, TheHostReadsReportedTokensAfterTheirMark) {
  constexpr int64_t kVocabulary = 4096;
  const Pair logits = random(DType::f32, {3, kVocabulary}, 4.0F);
  const Pair zeros = pair_of({0, 0, 0}, DType::f32, {3});
  const Pair ones = pair_of({1, 1, 1}, DType::f32, {3});
  const Pair none = numbers<int32_t>({-1, -1, -1}, {3});
  const Pair ids = numbers<int32_t>({-7, -7, -7}, {3});
  const Pair log_probs = poisoned(DType::f32, {3});
  std::vector<Buffer> shared;
  std::vector<int32_t> reported[2];
  run([&](Backend& b, auto at) {
    shared.push_back(b.allocate_shared(12, "reported tokens"));
    std::vector<int32_t>& result = reported[shared.size() - 1];
    const Tensor report(shared.back().data(), DType::i32, b.device(), {3});
    const SamplingRows rows{.temperature = at(zeros),
                            .top_k = at(none),
                            .top_p = at(ones),
                            .min_p = at(zeros),
                            .uniform = at(zeros),
                            .repetition_penalty = at(ones),
                            .presence_penalty = at(zeros),
                            .frequency_penalty = at(zeros),
                            .counts_row = at(none),
                            .mask_row = at(none),
                            .all_greedy = true};
    for (int i = 0; i < 9; ++i) b.sample(at(logits), rows, at(ids), at(log_probs), report);
    const Backend::Mark mark = b.mark();
    b.zero(at(log_probs));
    b.wait(mark);
    result.assign(report.data<int32_t>(), report.data<int32_t>() + 3);
  });
  expect_equal(ids);
  EXPECT_EQ(reported[0], reported[1]);
  EXPECT_EQ(reported[0][0], ids.host.data<int32_t>()[0]);
}

TEST_P(Sampling, TopLogProbsAreSortedAndNormalised) {
  constexpr int64_t kVocabulary = 4099;
  const Pair logits = random(DType::f32, {3, kVocabulary}, 4.0F);
  const Pair ids = numbers<int32_t>(std::vector<int32_t>(15, -1), {3, 5});
  const Pair log_probs = poisoned(DType::f32, {3, 5});
  run([&](Backend& b, auto at) { b.top_log_probs(at(logits), at(ids), at(log_probs)); });
  expect_equal(ids);
  expect_close(log_probs, 1e-5);
}

TEST_P(Sampling, CountTokensLeavesThePromptBitAndSaturates) {
  const Pair counts = numbers<uint16_t>({0x8000, 0x7FFF, 0xFFFF, 5, 0, 0, 0, 0}, {2, 4});
  const Pair ids = numbers<int32_t>({0, 3, 2}, {3});
  const Pair lines = numbers<int32_t>({0, -1, 1}, {3});
  run([&](Backend& b, auto at) { b.count_tokens(at(ids), at(lines), at(counts)); });
  expect_equal(counts);
  const Pair more = numbers<int32_t>({1}, {1});
  const Pair line = numbers<int32_t>({0}, {1});
  run([&](Backend& b, auto at) { b.count_tokens(at(more), at(line), at(counts)); });
  expect_equal(counts);
  EXPECT_EQ(floats(counts.host)[1], 0x7FFF);
}

TEST_P(Operations, ReplaySeesTheContentsOfItsTensorsEachTime) {
  const Pair x = random(DType::f32, {3, 40});
  const Pair y = random(DType::f32, {3, 40});
  const Pair sum = poisoned(DType::f32, {3, 40});
  for (int step = 0; step < 3; ++step) {
    run([&](Backend& b, auto at) { b.replay(7, [&] { b.add(at(x), at(y), at(sum)); }); });
    expect_equal(sum);
    run([&](Backend& b, auto at) { b.copy(at(sum), at(x)); });
  }
}

TEST_P(Operations, AStepThatNeedsTheHostIsReplayedToo) {
  const Pair x = random(DType::f32, {2, 8});
  const Pair sum = random(DType::f32, {2, 8});
  const std::vector<float> ones(16, 1.0F);
  for (int step = 0; step < 3; ++step) {
    run([&](Backend& b, auto at) {
      b.replay(8, [&] {
        b.upload(std::as_bytes(std::span(ones)), at(x));
        b.add(at(x), at(sum), at(sum));
      });
    });
    expect_equal(sum);
  }
}

TEST_P(Operations, AnErrorInAReplayedStepLeavesTheBackendUsable) {
  const Pair x = random(DType::f32, {2, 8});
  const Pair other = random(DType::f32, {3, 8});
  EXPECT_THROW(backend_->replay(9, [&] { backend_->add(x.device, other.device, x.device); }),
               Error);
  run([&](Backend& b, auto at) { b.replay(9, [&] { b.add(at(x), at(x), at(x)); }); });
  expect_equal(x);
}

TEST_P(Operations, AnEarlyUploadIsThereForWhatIsIssuedAfterIt) {
  const Pair x = random(DType::f32, {3, 500});
  const Pair y = random(DType::f32, {3, 500});
  const Pair lines[] = {poisoned(DType::f32, {3, 500}), poisoned(DType::f32, {3, 500})};
  for (int step = 0; step < 8; ++step) {
    const Pair& line = lines[step % 2];
    const std::vector<float> values(1500, static_cast<float>(step));
    run([&](Backend& b, auto at) {
      b.upload_early(std::as_bytes(std::span(values)), at(line));
      b.replay(static_cast<uint64_t>(20 + step % 2), [&] { b.add(at(x), at(line), at(y)); });
    });
    expect_equal(y);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Operations, ::testing::Values("cpu", "cuda"),
                         [](const auto& test) { return test.param; });
INSTANTIATE_TEST_SUITE_P(Backends, Sampling, ::testing::Values("cpu", "cuda"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace glimpse::testing
