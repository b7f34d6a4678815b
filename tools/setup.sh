# shellcheck shell=bash
# What ./glimpse and ./check share: packages from packages.txt, nvcc, the number of build jobs.
# Sourced with $root set to the project's folder. Everything it says goes to standard error.

root=${root:?set by the script that sources this}

say() { printf 'glimpse: %s\n' "$*" >&2; }
fail() {
  say "$1"
  shift
  for hint in "$@"; do printf '  hint: %s\n' "$hint" >&2; done
  exit 1
}

# Names of the given sections of packages.txt, one a line.
packages_of() {
  local section
  for section in "$@"; do
    awk -v want="[$section]" '/^\[/ {on = ($0 == want); next} on && NF && !/^#/' \
      "$root/packages.txt"
  done
}

# Installs what dpkg does not have yet.
install_packages() {
  local missing=() name
  if ! command -v dpkg-query >/dev/null; then
    say "this is no Debian or Ubuntu: if the build misses something, it is one of these packages:"
    packages_of "$@" | tr '\n' ' ' | fold -sw 96 >&2
    printf '\n' >&2
    return
  fi
  local have
  have=$(dpkg-query -W -f '${db:Status-Abbrev} ${binary:Package} ${Provides}\n' 2>/dev/null |
    sed -n 's/^ii *//p' | tr -d ',' | tr ' ' '\n' | sed 's/:.*//' | sort -u)
  while read -r name; do
    grep -qxF -- "$name" <<<"$have" || missing+=("$name")
  done < <(packages_of "$@")
  ((${#missing[@]})) || return 0

  local apt=(apt-get) by_hand="apt-get update && apt-get install ${missing[*]}"
  command -v apt-get >/dev/null ||
    fail "missing packages and no apt-get: ${missing[*]}" "install them, then run this again"
  if ((EUID != 0)); then
    command -v sudo >/dev/null ||
      fail "missing packages, and neither root nor sudo to install them: ${missing[*]}" \
        "as root: $by_hand"
    apt=(sudo apt-get)
    by_hand="sudo apt-get update && sudo apt-get install ${missing[*]}"
  fi
  say "installing ${#missing[@]} packages with ${apt[*]}: ${missing[*]}"
  # An update may fail for a source that these packages do not need: the install decides.
  "${apt[@]}" -qq update >&2 || say "apt-get update reported errors; trying to install all the same"
  "${apt[@]}" -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends "${missing[@]}" \
    </dev/null >&2 || fail "apt-get could not install what is missing" "by hand: $by_hand"
}

# Every nvcc there is, the newest release folder first; PATH's own before all.
all_nvcc() {
  local candidate
  candidate=$(command -v nvcc) && printf '%s\n' "$candidate"
  for candidate in /usr/local/cuda/bin/nvcc /usr/local/cuda-*/bin/nvcc; do
    [[ -x $candidate ]] && printf '%s\n' "$candidate"
  done | sort -rV
}

# The first nvcc of 12.8 or newer that compiles for all the given architectures (120, 86, ...).
find_nvcc() {
  local nvcc version codes architecture
  while read -r nvcc; do
    version=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
    [[ -n $version && $(printf '12.8\n%s\n' "$version" | sort -V | head -n 1) == 12.8 ]] || continue
    codes=$("$nvcc" --list-gpu-code 2>/dev/null) || continue
    for architecture in "$@"; do
      grep -qx "sm_$architecture" <<<"$codes" || continue 2
    done
    printf '%s\n' "$nvcc"
    return 0
  done < <(all_nvcc)
  return 1
}

# One compiler per core, but at least 1 GiB of free memory for each.
build_jobs() {
  local cores free
  cores=$(nproc)
  free=$(awk '/^MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
  ((free >= 1)) || free=1
  echo $((cores < free ? cores : free))
}
