// Leaks of libraries that cannot be fixed here, kept out of the fuzz targets' reports.
#pragma once

/// Debian 12's libheif 1.15.1 forgets dav1d's 40-byte data record when an AV1 picture is damaged.
extern "C" [[gnu::used]] inline const char* __lsan_default_suppressions() {
  return "leak:libdav1d\n";
}
