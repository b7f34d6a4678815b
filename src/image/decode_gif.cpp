// GIF through giflib: the first frame where it stands on its canvas. What it leaves uncovered has
// the transparent index's colour, or that of index 0, as Pillow has it.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>

#include <gif_lib.h>

#include <fmt/format.h>

#include "image/picture_file.h"

namespace glimpse {
namespace {

struct GifSource {
  PictureFile file;
  size_t position = 0;
  bool truncated = false;
};

int read_bytes(GifFileType* gif, GifByteType* target, int count) {
  auto* source = static_cast<GifSource*>(gif->UserData);
  const size_t wanted = static_cast<size_t>(std::max(count, 0));
  const size_t taken = std::min(wanted, source->file.size() - source->position);
  std::memcpy(target, source->file.data() + source->position, taken);
  source->position += taken;
  source->truncated = source->truncated || taken < wanted;
  return static_cast<int>(taken);
}

struct GifClose {
  void operator()(GifFileType* gif) const { DGifCloseFile(gif, nullptr); }
};

[[noreturn]] void throw_gif_error(const GifSource& source, int error) {
  if (source.truncated) throw_truncated(source.file, "GIF", "its first frame is incomplete");
  const char* reason = GifErrorString(error);
  throw_damaged(source.file, "GIF", reason == nullptr ? "giflib cannot read it" : reason);
}

// Reads up to the first frame's descriptor; gives its transparent index, if it has one.
std::optional<int> find_first_frame(GifFileType* gif, const GifSource& source) {
  std::optional<int> transparent;
  for (;;) {
    GifRecordType record = UNDEFINED_RECORD_TYPE;
    if (DGifGetRecordType(gif, &record) == GIF_ERROR) throw_gif_error(source, gif->Error);
    if (record == TERMINATE_RECORD_TYPE) throw_damaged(source.file, "GIF", "it has no frame");
    if (record == IMAGE_DESC_RECORD_TYPE) {
      if (DGifGetImageDesc(gif) == GIF_ERROR) throw_gif_error(source, gif->Error);
      return transparent;
    }
    int code = 0;
    GifByteType* block = nullptr;
    if (DGifGetExtension(gif, &code, &block) == GIF_ERROR) throw_gif_error(source, gif->Error);
    while (block != nullptr) {
      GraphicsControlBlock control{};
      if (code == GRAPHICS_EXT_FUNC_CODE &&
          DGifExtensionToGCB(block[0], block + 1, &control) == GIF_OK) {
        transparent = control.TransparentColor == NO_TRANSPARENT_COLOR
                          ? std::nullopt
                          : std::optional(control.TransparentColor);
      }
      if (DGifGetExtensionNext(gif, &block) == GIF_ERROR) throw_gif_error(source, gif->Error);
    }
  }
}

using Palette = std::array<std::array<uint8_t, 3>, 256>;

// Entries that the file does not define are black; without any palette the indices are gray.
Palette read_palette(const ColorMapObject* colors) {
  Palette palette{};
  for (int i = 0; i < 256; ++i) {
    if (colors == nullptr) {
      palette[i].fill(static_cast<uint8_t>(i));
    } else if (i < colors->ColorCount) {
      palette[i] = {colors->Colors[i].Red, colors->Colors[i].Green, colors->Colors[i].Blue};
    }
  }
  return palette;
}

void read_rows(GifFileType* gif, const GifSource& source, const Palette& palette, RgbImage& image) {
  const GifImageDesc& frame = gif->Image;
  std::vector<uint8_t> indices(static_cast<size_t>(frame.Width));
  const auto read_row = [&](int y) {
    if (DGifGetLine(gif, indices.data(), frame.Width) == GIF_ERROR) {
      throw_gif_error(source, gif->Error);
    }
    const size_t first = static_cast<size_t>(frame.Top + y) * image.width + frame.Left;
    for (int x = 0; x < frame.Width; ++x) {
      std::memcpy(&image.pixels[(first + x) * 3], palette[indices[x]].data(), 3);
    }
  };
  struct Pass {
    int first;
    int step;
  };
  constexpr Pass kInterlaced[] = {{0, 8}, {4, 8}, {2, 4}, {1, 2}};
  constexpr Pass kPlain[] = {{0, 1}};
  const std::span<const Pass> passes =
      frame.Interlace ? std::span<const Pass>(kInterlaced) : std::span<const Pass>(kPlain);
  for (const Pass& pass : passes) {
    for (int y = pass.first; y < frame.Height; y += pass.step) read_row(y);
  }
}

}  // namespace

RgbImage decode_gif(const PictureFile& file) {
  GifSource source{file};
  int error = 0;
  const std::unique_ptr<GifFileType, GifClose> gif(DGifOpen(&source, read_bytes, &error));
  if (!gif) throw_gif_error(source, error);
  const std::optional<int> transparent = find_first_frame(gif.get(), source);
  const GifImageDesc& frame = gif->Image;
  if (frame.Width <= 0 || frame.Height <= 0) {
    throw_damaged(file, "GIF",
                  fmt::format("its first frame has {} x {} pixels", frame.Width, frame.Height));
  }
  // A frame that reaches beyond the canvas makes the canvas larger.
  const int width = std::max(gif->SWidth, frame.Left + frame.Width);
  const int height = std::max(gif->SHeight, frame.Top + frame.Height);
  RgbImage image = allocate_picture(file, "GIF", width, height);
  const Palette palette = read_palette(frame.ColorMap != nullptr ? frame.ColorMap : gif->SColorMap);
  const std::array<uint8_t, 3>& uncovered = palette[transparent.value_or(0) & 0xFF];
  for (size_t i = 0; i < image.pixels.size(); i += 3) {
    std::memcpy(&image.pixels[i], uncovered.data(), 3);
  }
  read_rows(gif.get(), source, palette, image);
  return image;
}

}  // namespace glimpse
