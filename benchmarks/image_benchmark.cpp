// Decoding and preparing a 12-megapixel photograph: what a picture costs before the model sees it.
//   build/release/benchmarks/image_benchmark
#include <cmath>
#include <cstdio>  // jpeglib.h needs FILE
#include <cstdlib>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include <jpeglib.h>

#include <benchmark/benchmark.h>

#include "image/decode.h"
#include "image/image_processor.h"

namespace glimpse {
namespace {

constexpr int kWidth = 4000;
constexpr int kHeight = 3000;

// Slow waves with grain on top compress about as a camera's pictures do.
RgbImage make_photograph() {
  std::mt19937 random(1);
  RgbImage image{.width = kWidth, .height = kHeight, .pixels = {}};
  image.pixels.reserve(size_t{kWidth} * kHeight * 3);
  for (int y = 0; y < kHeight; ++y) {
    for (int x = 0; x < kWidth; ++x) {
      const int grain = static_cast<int>(random() % 13);
      for (const double phase : {0.0, 1.0, 2.0}) {
        const double wave = std::sin(x * 0.013 + phase) * std::cos(y * 0.017 - phase);
        image.pixels.push_back(static_cast<uint8_t>(120 + 100 * wave + grain));
      }
    }
  }
  return image;
}

std::vector<std::byte> encode_jpeg(const RgbImage& image) {
  jpeg_compress_struct info{};
  jpeg_error_mgr errors{};
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &bytes, &size);
  info.image_width = image.width;
  info.image_height = image.height;
  info.input_components = 3;
  info.in_color_space = JCS_RGB;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, 90, TRUE);
  jpeg_start_compress(&info, TRUE);
  while (info.next_scanline < info.image_height) {
    auto* row = const_cast<JSAMPROW>(&image.pixels[size_t{info.next_scanline} * image.width * 3]);
    jpeg_write_scanlines(&info, &row, 1);
  }
  jpeg_finish_compress(&info);
  jpeg_destroy_compress(&info);
  const auto* first = reinterpret_cast<const std::byte*>(bytes);
  std::vector<std::byte> file(first, first + size);
  std::free(bytes);
  return file;
}

const RgbImage& photograph() {
  static const RgbImage image = make_photograph();
  return image;
}

void decode_12_megapixel_jpeg(benchmark::State& state) {
  const std::vector<std::byte> file = encode_jpeg(photograph());
  for (auto _ : state) benchmark::DoNotOptimize(decode_picture(file, "photograph"));
  state.counters["file_bytes"] = static_cast<double>(file.size());
}
BENCHMARK(decode_12_megapixel_jpeg)->Unit(benchmark::kMillisecond);

void resize_12_megapixels(benchmark::State& state) {
  const PictureSize size{.height = static_cast<int>(state.range(1)),
                         .width = static_cast<int>(state.range(0))};
  for (auto _ : state) {
    state.PauseTiming();
    RgbImage image = photograph();
    state.ResumeTiming();
    benchmark::DoNotOptimize(resize_bicubic(std::move(image), size));
  }
}
BENCHMARK(resize_12_megapixels)
    ->ArgNames({"width", "height"})
    ->Args({1024, 768})
    ->Args({3840, 2880})
    ->Unit(benchmark::kMillisecond);

// Resize and hash.
void process_12_megapixels(benchmark::State& state) {
  const ImageProcessor processor{ImageProcessorConfig{}};
  for (auto _ : state) {
    state.PauseTiming();
    RgbImage image = photograph();
    state.ResumeTiming();
    benchmark::DoNotOptimize(processor.process(std::move(image), 0, 1024 * 768));
  }
}
BENCHMARK(process_12_megapixels)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace glimpse

BENCHMARK_MAIN();
