// Load once, caption many: the library in ten lines.
//   cmake -S examples -B build/example && cmake --build build/example
//   build/example/caption_image examples/pictures/*
#include <iostream>

#include <glimpse/engine.h>

int main(int argc, char** argv) {
  try {
    glimpse::Engine engine({});  // {.model = "Qwen/Qwen3-VL-2B-Instruct-FP8"} for a real one
    for (int i = 1; i < argc; ++i) {
      std::cout << argv[i] << ": " << engine.caption(argv[i]) << "\n";
    }
  } catch (const glimpse::Error& error) {
    std::cerr << error.what() << "\n" << error.hint() << "\n";
    return 1;
  }
}
