#!/bin/sh
# The header compiles everywhere, with each switch alone, without warnings, and keeps its promises
# about symbols:  sh tests/compile.sh
set -u
cd "$(dirname "$0")/.." || exit 2
tmp=$(mktemp -d "${TMPDIR:-/tmp}/monet-compile.XXXXXX") || exit 2
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
CC=${CC:-cc}
warn="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"

ok() { # ok NAME COMMAND...: the command must succeed
    name=$1
    shift
    if "$@" > "$tmp/log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $name: $*"
        head -n 5 "$tmp/log"
    fi
}
empty() { # empty NAME TEXT: the text must be empty
    if [ -z "$2" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $1: $2"
    fi
}

printf '#define MONET_IMPLEMENTATION\n#include "monet.h"\nint main(void) { return monet_version() == 0; }\n' > "$tmp/u.c"
{ printf '#include <stdio.h>\n#include <unistd.h>\n'; cat "$tmp/u.c"; } > "$tmp/after.c"
cp "$tmp/u.c" "$tmp/u.cpp"
printf '#include "monet.h"\nint main(void) { return MONET_VERSION == 0; }\n' > "$tmp/api.c"

for compiler in gcc clang "$CC"; do
    command -v "$compiler" > /dev/null || { echo "note: no $compiler here"; continue; }
    for switch in "" -DMONET_STATIC -DMONET_NO_SIMD -DMONET_NO_STDIO -DMONET_NO_TRAINING \
        "-DMONET_THREADS -pthread" "-DMONET_REAL=double"; do
        for opt in -O0 -O2; do
            ok "$compiler c99 $switch" $compiler -std=c99 $opt $warn $switch -I. -c "$tmp/u.c" -o "$tmp/u.o"
        done
        ok "$compiler after $switch" $compiler -std=c99 $warn $switch -I. -fsyntax-only "$tmp/after.c"
    done
    ok "$compiler c17" $compiler -std=c17 $warn -I. -fsyntax-only "$tmp/u.c"
    ok "$compiler api alone" $compiler -std=c99 $warn -I. -fsyntax-only "$tmp/api.c"
    if $compiler -Ofast -I. -c "$tmp/u.c" -o "$tmp/u.o" 2> "$tmp/log"; then
        empty "$compiler -Ofast" "compiles, but must stop"
    else
        ok "$compiler -Ofast message" grep -q 'monet.h needs NaN' "$tmp/log"
    fi
done
for compiler in g++ clang++; do
    command -v "$compiler" > /dev/null || { echo "note: no $compiler here"; continue; }
    for switch in "" -DMONET_STATIC -DMONET_NO_SIMD -DMONET_NO_STDIO -DMONET_NO_TRAINING \
        "-DMONET_THREADS -pthread" "-DMONET_REAL=double"; do
        ok "$compiler c++11 $switch" $compiler -std=c++11 $warn $switch -I. -fsyntax-only "$tmp/u.cpp"
    done
    ok "$compiler c++17" $compiler -std=c++17 $warn -I. -fsyntax-only "$tmp/u.cpp"
done

# ---- symbols: nothing that ends, prints, or reads the environment; no state; only monet_ names
for switch in "" "-DMONET_THREADS"; do
    ok "object" $CC -std=c99 -O1 -fno-pie $switch -I. -c "$tmp/u.c" -o "$tmp/u.o"
    empty "forbidden calls" "$(nm -u "$tmp/u.o" | awk '{print $2}' | grep -xE \
'abort|exit|_exit|__assert_fail|printf|puts|putchar|fprintf|sprintf|snprintf|perror|getenv|secure_getenv|signal|setlocale|strtod|strtof|atof|rand|srand|system|popen')"
    empty "mutable data" "$(nm "$tmp/u.o" | awk '$2 ~ /^[DdBbC]$/ {print $3}')"
    empty "names" "$(nm "$tmp/u.o" | awk '$2 ~ /^[TRV]$/ && $3 !~ /^monet_/ && $3 != "main" {print $3}')"
done

# ---- macros: all begin with MONET_, internal ones are gone at the end
$CC -std=c99 -dM -E -I. "$tmp/api.c" 2> /dev/null | sort > "$tmp/api.txt"
$CC -std=c99 -dM -E -I. "$tmp/u.c" 2> /dev/null | sort > "$tmp/all.txt"
empty "leaked macros" "$(comm -13 "$tmp/api.txt" "$tmp/all.txt" | awk '{print $2}' | grep '^MONET__' | tr '\n' ' ')"

# ---- two libraries may embed the header in one program
printf '#define MONET_STATIC\n#define MONET_IMPLEMENTATION\n#include "monet.h"\nint one(void); int one(void) { return monet_version(); }\n' > "$tmp/one.c"
printf '#define MONET_STATIC\n#define MONET_IMPLEMENTATION\n#include "monet.h"\nint one(void); int main(void) { return one() != monet_version(); }\n' > "$tmp/two.c"
ok "two static copies" $CC -std=c99 -O1 $warn -I. "$tmp/one.c" "$tmp/two.c" -o "$tmp/two" -lm
ok "two static copies run" "$tmp/two"

echo "compile: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
