#!/usr/bin/env bash
# Writes requirements/*.txt anew from pyproject.toml, for Python 3.11 to 3.13 on every platform. Needs uv.
#   requirements/lock.sh             keeps the pinned versions that still fit
#   requirements/lock.sh --upgrade   takes the newest
# The files name no package index: whoever installs uses the index that their own pip is set up with.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "uv is missing: pip install uv" >&2; exit 1; }

compile() { # compile OUTPUT INPUT... : all flags but the ones that differ
  local output=$1
  shift
  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
    --no-emit-index-url --no-emit-find-links --output-file "$output" "$@" >/dev/null
  sed -i '/^ *# *-c /d' "$output" # the constraint file is a temporary one
}

without_torch() { # torch and what only its CUDA builds need: their hashes differ from build to build
  awk '/^[A-Za-z0-9]/ { keep = $0 !~ /^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)(\[[a-z,-]+\])?==/ } keep' "$1"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
header() { printf '# Written by requirements/lock.sh: %s\n' "$1"; }

# The largest set first; the others take their versions from it, so that one environment can hold all of them.
everything=$work/everything.txt
for file in requirements/train.txt requirements/dev.txt; do
  [ -f "$file" ] && grep -v '^#' "$file" >"$everything" # the versions to keep
done
grep -v '^ *#' requirements/torch.txt >>"$everything" 2>/dev/null || true
compile "$everything" "$@" --extra train --extra dev pyproject.toml requirements/build.in
compile "$work/train.txt" --constraint "$everything" --extra train pyproject.toml requirements/build.in
compile "$work/serve.txt" --constraint "$everything" pyproject.toml
compile "$work/build.txt" --constraint "$everything" requirements/build.in

for name in bench pecos pecos-alone; do # not of one environment with the others
  deps=$([ "$name" = pecos ] || echo --no-deps)
  [ -f "requirements/$name.txt" ] && grep -v '^#' "requirements/$name.txt" >"$work/$name.txt"
  compile "$work/$name.txt" "$@" $deps "requirements/$name.in"
done

{ header "the sentence encoder of make bench-accuracy; install it with --no-deps"; cat "$work/bench.txt"; } >requirements/bench.txt
{ header "numpy below 2 and its like, for PECOS"; cat "$work/pecos.txt"; } >requirements/pecos.txt
{ header "PECOS itself; install it with --no-deps"; cat "$work/pecos-alone.txt"; } >requirements/pecos-alone.txt
{ header "the service"; cat "$work/serve.txt"; } >requirements/serve.txt
{ header "what builds the package itself (install it with --no-build-isolation)"; cat "$work/build.txt"; } >requirements/build.txt
{ header "serving, training and export; install torch.txt first"; without_torch "$work/train.txt"; } >requirements/train.txt
{ header "all of train.txt and the tools of make check and make test; install torch.txt first"; without_torch "$everything"; } \
  >requirements/dev.txt
{
  echo "# By version only: the CPU and CUDA builds of one version have different hashes. Install it before train.txt or dev.txt."
  grep -E '^torch==' "$everything" | sed -E 's/ *[;\\].*//' | sort -u
} >"$work/torch.txt"
[ "$(grep -c '^torch==' "$work/torch.txt")" = 1 ] || { echo "more than one version of torch:" >&2; cat "$work/torch.txt" >&2; exit 1; }
cp "$work/torch.txt" requirements/torch.txt
