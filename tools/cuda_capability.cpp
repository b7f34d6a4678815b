// Asks libcuda, loaded at run time, which cards it sees: one line "120 NVIDIA GeForce RTX 5060"
// each. ./glimpse compiles and runs this to learn what to build for; it needs no CUDA toolkit.
#include <dlfcn.h>

#include <cstdio>

int main() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == nullptr) library = dlopen("/usr/lib/wsl/lib/libcuda.so.1", RTLD_NOW);
  if (library == nullptr) return 1;
  const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(library, "cuInit"));
  const auto get_count = reinterpret_cast<int (*)(int*)>(dlsym(library, "cuDeviceGetCount"));
  const auto get_name =
      reinterpret_cast<int (*)(char*, int, int)>(dlsym(library, "cuDeviceGetName"));
  const auto get_attribute =
      reinterpret_cast<int (*)(int*, int, int)>(dlsym(library, "cuDeviceGetAttribute"));
  if (!init || !get_count || !get_name || !get_attribute) return 1;

  constexpr int kCapabilityMajor = 75;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
  constexpr int kCapabilityMinor = 76;
  int count = 0;
  if (init(0) != 0 || get_count(&count) != 0) return 1;
  for (int device = 0; device < count; ++device) {
    int major = 0;
    int minor = 0;
    char name[256] = "";
    if (get_attribute(&major, kCapabilityMajor, device) != 0) return 1;
    if (get_attribute(&minor, kCapabilityMinor, device) != 0) return 1;
    if (get_name(name, sizeof name, device) != 0) return 1;
    std::printf("%d%d %s\n", major, minor, name);
  }
  return count > 0 ? 0 : 1;
}
