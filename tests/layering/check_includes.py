"""Checks every #include of the project against the layers of docs/architecture.md.

usage: check_includes.py PROJECT_FOLDER        prints each wrong include; exit status 1 if any
"""

import pathlib
import re
import sys

# What each layer may include besides itself. `public` is include/glimpse.
LAYERS = {
    "public": set(),
    "base": {"public"},
    "tensor": {"public", "base"},
    "backend": {"public", "base", "tensor"},
    "cpu": {"public", "base", "tensor", "backend"},
    "cuda": {"public", "base", "tensor", "backend"},
    "text": {"public", "base"},
    "image": {"public", "base"},
    "model": {"public", "base", "tensor", "backend", "image"},
    "runtime": {"public", "base", "tensor", "backend", "image", "text", "model"},
    # The server and the program are users of the library: its public headers, and of the layers
    # only base, for JSON and the like.
    "server": {"public", "base"},
    "apps": {"public", "base", "server"},
}
# Libraries that only some layers may use; a path is one file that may.
ONLY_IN = {
    "nlohmann/": {"src/base/json.h", "src/base/json.cpp"},
    "cuda": {"cuda"},
    "cuda_": {"cuda"},
    "cooperative_groups": {"cuda"},
    "mma.h": {"cuda"},
    "hwy/": {"cpu", "image"},
    "simdjson": {"text"},
    "pcre2": {"text"},
    "utf8proc": {"text"},
    "boost/": {"server", "apps"},
    "openssl/": {"base", "server", "apps"},
    "spdlog/": {"server", "apps"},
    "CLI/": {"apps"},
    "jpeglib": {"image"},
    "png.h": {"image"},
    "webp/": {"image"},
    "tiff": {"image"},
    "gif_lib": {"image"},
    "libheif/": {"image"},
    "libexif/": {"image"},
}
# The one place that names the concrete backends.
CREATE_BACKEND = "src/backend/create.cpp"
CONCRETE_BACKENDS = {"cpu", "cuda"}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".inl", ".hpp"}


def layer_of(path):
    """The layer of a file, named by its path from the project's folder; None outside all."""
    parts = path.split("/")
    if parts[0] == "include":
        return "public"
    if parts[0] == "apps":
        return "apps"
    return parts[1] if parts[0] == "src" and len(parts) > 2 else None


def layer_of_include(name, quoted, including):
    """The layer that an include refers to; None for the standard library and other libraries."""
    first = name.split("/")[0]
    if first == "glimpse":
        return "public"
    if "/" in name and first in LAYERS:
        return first
    # "command.h" beside the including file
    return layer_of(including) if quoted and "/" not in name else None


def wrong_includes(path, text):
    """Yields a sentence for each wrong include of one file."""
    layer = layer_of(path)
    if layer not in LAYERS:
        if layer:
            yield f"{path}: src/{layer} is not in the table of layers"
        return
    # An include inside a comment is an example. Quoted paths hold no comment marks.
    for quote, name in INCLUDE.findall(COMMENT.sub("", text)):
        target = layer_of_include(name, quote == '"', path)
        if target and target != layer and target not in LAYERS[layer]:
            if not (path == CREATE_BACKEND and target in CONCRETE_BACKENDS):
                yield f'{path}: {layer} must not include {target} ("{name}")'
        if target:
            continue
        if layer == "public" and ("/" in name or name.endswith(".h")):
            yield f"{path}: public headers include the standard library only (<{name}>)"
        for library, users in ONLY_IN.items():
            if name.startswith(library) and layer not in users and path not in users:
                yield f"{path}: only {', '.join(sorted(users))} may include <{name}>"
                break


def check(project):
    """All wrong includes of a project, and the number of files read."""
    found, num_files = [], 0
    for folder in ("include", "src", "apps"):
        for path in sorted((project / folder).rglob("*")):
            if path.suffix in SUFFIXES:
                num_files += 1
                name = path.relative_to(project).as_posix()
                found += wrong_includes(name, path.read_text(encoding="utf-8"))
    return found, num_files


def main():
    found, num_files = check(pathlib.Path(sys.argv[1]))
    print(*found, sep="\n")
    print(f"{num_files} files, {len(found)} wrong includes")
    return 1 if found or num_files == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
