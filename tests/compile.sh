#!/bin/sh
# The header compiles everywhere, with each switch alone, without warnings, and keeps its promises
# about symbols:  sh tests/compile.sh
set -u
cd "$(dirname "$0")/.." || exit 2
tmp=$(mktemp -d "${TMPDIR:-/tmp}/monet-compile.XXXXXX") || exit 2
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
CC=${CC:-cc}
forbidden='_?exit|abort|__assert_fail|v?f?printf|v?sn?printf|puts|putchar|perror|(secure_)?getenv'
forbidden="$forbidden|signal|setlocale|strto[dfl]|ato[fi]|s?rand|system|popen"
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

printf '#define MONET_IMPLEMENTATION\n#include "monet.h"\n' > "$tmp/u.c"
echo 'int main(void) { return monet_version() == 0; }' >> "$tmp/u.c"
{ printf '#include <stdio.h>\n#include <unistd.h>\n'; cat "$tmp/u.c"; } > "$tmp/after.c"
cp "$tmp/u.c" "$tmp/u.cpp"
printf '#include "monet.h"\nint main(void) { return MONET_VERSION == 0; }\n' > "$tmp/api.c"

# The same as clang sees while it only reads, gcc sees when it makes code.
both="gcc clang"
command -v gcc > /dev/null || command -v clang > /dev/null || both=$CC
for compiler in $both; do
    command -v "$compiler" > /dev/null || { echo "note: no $compiler here"; continue; }
    to="-O0 -c -o $tmp/u.o"
    [ "$compiler" = clang ] && to=-fsyntax-only
    for switch in "" -DMONET_STATIC -DMONET_NO_SIMD -DMONET_NO_STDIO -DMONET_NO_TRAINING \
        "-DMONET_THREADS -pthread" "-DMONET_THREADS -DMONET_NO_STDIO" "-DMONET_REAL=double"; do
        c99="$compiler -std=c99 $warn $switch -I."
        ok "$compiler c99 $switch" $c99 $to "$tmp/u.c"
        ok "$compiler after $switch" $c99 -fsyntax-only "$tmp/after.c"
    done
    ok "$compiler -O2" $compiler -std=c99 -O2 $warn -I. -c "$tmp/u.c" -o "$tmp/u.o"
    ok "$compiler c17" $compiler -std=c17 $warn -I. -fsyntax-only "$tmp/u.c"
    ok "$compiler api alone" $compiler -std=c99 $warn -I. -fsyntax-only "$tmp/api.c"
    if $compiler -Ofast -I. -fsyntax-only "$tmp/u.c" 2> "$tmp/fast"; then
        empty "$compiler -Ofast" "compiles, but must stop"
    else
        ok "$compiler -Ofast message" grep -q 'monet.h needs NaN' "$tmp/fast"
    fi
done
for compiler in g++ clang++; do
    command -v "$compiler" > /dev/null || { echo "note: no $compiler here"; continue; }
    for switch in "" -DMONET_STATIC -DMONET_NO_SIMD -DMONET_NO_STDIO -DMONET_NO_TRAINING \
        "-DMONET_THREADS -pthread" "-DMONET_REAL=double"; do
        ok "$compiler c++11 $switch" $compiler -std=c++11 $warn $switch -I. -fsyntax-only \
            "$tmp/u.cpp"
    done
    ok "$compiler c++17" $compiler -std=c++17 $warn -I. -fsyntax-only "$tmp/u.cpp"
done

# ---- each program with the implementation inside, as its first comment says to build it
for file in tools/*.c examples/*.c; do
    ok "$file" $CC -Wall -Wextra -Werror -I. -fsyntax-only "$file"
done

# ---- symbols: nothing that ends, prints, or reads the environment; no state; only monet_ names
for switch in "" "-DMONET_THREADS"; do
    ok "object" $CC -std=c99 -O0 -fno-pie $switch -I. -c "$tmp/u.c" -o "$tmp/u.o"
    empty "forbidden calls" "$(nm -u "$tmp/u.o" | awk '{print $2}' | grep -xE "$forbidden")"
    empty "mutable data" "$(nm "$tmp/u.o" | awk '$2 ~ /^[DdBbC]$/ {print $3}')"
    names=$(nm "$tmp/u.o" | awk '$2 ~ /^[TRV]$/ {print $3}')
    empty "names" "$(echo "$names" | grep -vE '^(monet_.*|main)$')"
done

# ---- macros: all begin with MONET_, internal ones are gone at the end
$CC -std=c99 -dM -E -I. "$tmp/api.c" 2> /dev/null | sort > "$tmp/api.txt"
$CC -std=c99 -dM -E -I. "$tmp/u.c" 2> /dev/null | sort > "$tmp/all.txt"
leaked=$(comm -13 "$tmp/api.txt" "$tmp/all.txt" | awk '{print $2}' | grep '^MONET__')
empty "leaked macros" "$leaked"

# ---- two libraries may embed the header in one program
for part in one two; do
    { echo '#define MONET_STATIC'; sed '$d' "$tmp/u.c"; } > "$tmp/$part.c"
    echo 'int one(void);' >> "$tmp/$part.c"
done
echo 'int one(void) { return monet_version(); }' >> "$tmp/one.c"
echo 'int main(void) { return one() != monet_version(); }' >> "$tmp/two.c"
ok "two static copies" $CC -std=c99 $warn -I. "$tmp/one.c" "$tmp/two.c" -o "$tmp/two" -lm
ok "two static copies run" "$tmp/two"

echo "compile: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
