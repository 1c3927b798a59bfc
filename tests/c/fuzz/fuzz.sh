#!/usr/bin/env bash
# Fuzzes the core: bash tests/c/fuzz/fuzz.sh SECONDS [libFuzzer's options, or a file to run again]
# Needs clang with libFuzzer and sanitizers. Builds once into $FUZZ_BUILD (a new folder by default).
# UndefinedBehaviorSanitizer and coverage are for the scalar kernels. Those of AVX2 and AVX-512, the same source, have
# AddressSanitizer only: the rest would take a quarter of an hour to compile. AMX has none: sanitizers know nothing of
# its tile registers.
set -euo pipefail
cd "$(dirname "$0")/../../.."
seconds=$1
shift
out=${FUZZ_BUILD:-$(mktemp -d)}
mkdir -p "$out"
flags=(-std=c11 -D_GNU_SOURCE -O1 -g1 -ffp-contract=off -fno-math-errno -Icsrc -Icsrc/kernels
    -fno-omit-frame-pointer -fopenmp)
all=(-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-coverage=trace-cmp -fno-sanitize-recover=all)
avx512="-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c"
if [ ! -x "$out/forward" ]; then
    have=()
    kernels() { # NAME LANES FLAGS...
        clang "${flags[@]}" "${@:3}" -DFL_LANES_H="\"lanes_$2.h\"" -c csrc/kernels/kernels.c -o "$out/$1.o"
    }
    kernels scalar scalar "${all[@]}" &
    if [ "$(uname -m)" = x86_64 ]; then
        kernels avx2 avx2 -fsanitize=address -mavx2 -mfma -mf16c &
        kernels avx512 avx512 -fsanitize=address $avx512 &
        have=(-DFL_HAVE_AVX2=1 -DFL_HAVE_AVX512=1)
    fi
    wait
    clang "${flags[@]}" "${all[@]}" -fsanitize=fuzzer "${have[@]}" csrc/*.c tests/c/fuzz/forward.c "$out"/*.o \
        -o "$out/forward" -lm
fi
# OpenMP's threads outlive a forward, and count as leaks at the end.
export ASAN_OPTIONS=detect_leaks=0
exec "$out/forward" -max_total_time="$seconds" -max_len=256 -entropic=0 -print_final_stats=1 \
    -artifact_prefix="$out/" "$@"
