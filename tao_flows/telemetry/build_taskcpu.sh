#!/bin/sh
# Builds taskcpu.bpf.o, or the file named. Needs clang, llvm-strip and libbpf's headers:
#   apt-get install clang llvm libbpf-dev
# The object in the tree was built with clang 14; the same release gives the same bytes anywhere. It serves x86-64 and
# aarch64 alike.
set -eu
out="$(realpath "${1:-"$(dirname "$0")/taskcpu.bpf.o"}")"
cd "$(dirname "$0")"

# -g makes the BTF that the loader needs, and DWARF, which is taken out again. No path and no distribution's name for
# its compiler stays in it.
clang -target bpf -mcpu=v3 -O2 -g -fdebug-compilation-dir=. -fno-ident -Wall -Werror -Wno-unused-function \
    -c taskcpu.bpf.c -o "$out"
llvm-strip -g "$out"
