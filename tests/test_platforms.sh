#!/bin/sh
# The same greedy text on every machine that can be had or emulated here:
# sh tests/test_platforms.sh [FOLDER]   FOLDER (default: a new one, removed again) keeps the builds
#
# Takes some minutes, so tests/run.sh leaves it out. What is not installed is noted and skipped.
# On Debian: apt-get install qemu-user strace tcc musl-tools node lld wasi-libc
#   libclang-rt-14-dev-wasm32 gcc-{aarch64,riscv64,powerpc64le,s390x,i686}-linux-gnu
#   gcc-arm-linux-gnueabihf, and with them libc6-dev-{arm64,riscv64,ppc64el,s390x,i386,armhf}-cross
set -u
cd "$(dirname "$0")/.." || exit 2
CC=${CC:-cc}
model=examples/monet-4m.monet
prompt="The key to life is"
tokens=24
dir=${1:-}
if [ -z "$dir" ]; then
    dir=$(mktemp -d) || exit 2
    trap 'rm -rf "$dir"' EXIT
    trap 'exit 130' INT TERM HUP
fi
mkdir -p "$dir"
passed=0 failed=0

good() { passed=$((passed + 1)); }
bad() { # bad NAME FILE...: shows what the files say
    failed=$((failed + 1))
    echo "FAILED: $1"
    shift
    head -q -n 8 "$@" | cut -c 1-300
}
have() { # have NAME PROGRAM...
    name=$1
    shift
    for program in "$@"; do
        command -v "$program" > /dev/null || { echo "note: $name left out, no $program"; return 1; }
    done
}

# build NAME COMPILER WORDS: leaves an error in $dir/NAME.log
build() {
    out=$1
    shift
    "$@" -I. -o "$dir/$out" -lm > "$dir/$out.log" 2>&1 && { good; return 0; }
    bad "build $out" "$dir/$out.log"
    return 1
}

# same NAME COMMAND...: prints the text that the plain build printed
same() {
    name=$1
    shift
    start=$(date +%s)
    if ! timeout 900 "$@" > "$dir/out" 2> "$dir/err"; then
        bad "$name" "$dir/err" "$dir/out"
    elif ! cmp -s "$dir/out" "${want:-$dir/native.txt}"; then
        bad "$name: another text" "$dir/out" "$dir/err"
    else
        good
        echo "$name: same text, $(($(date +%s) - start)) s"
    fi
}

text() { # text NAME COMMAND...: same, for a build of generate
    name=$1
    shift
    same "$name" "$@" --model $model --temperature 0 --max-tokens $tokens --quiet --mode exact \
        "$prompt"
}

numbers() { # numbers NAME COMMAND...: a build of check finds the golden numbers
    name=$1
    shift
    if timeout 900 "$@" "$dir/golden.monet" $case/expected.safetensors $case/expected.json \
        > "$dir/out" 2>&1; then
        good
        echo "$name: golden numbers ($(tail -n 1 "$dir/out"))"
    else
        bad "$name: golden numbers" "$dir/out"
    fi
}

# ---- this machine
case=tests/golden/hd-odd-shapes
build convert "$CC" -O2 -pthread tools/convert.c || exit 1
build generate "$CC" -O2 -pthread examples/generate.c || exit 1
"$dir/convert" $case "$dir/golden.monet" > "$dir/out" 2>&1 || { bad convert "$dir/out"; exit 1; }
"$dir/generate" --model $model --temperature 0 --max-tokens $tokens --quiet --mode exact \
    --kernels scalar "$prompt" > "$dir/native.txt" || exit 1
text "native, best kernels" "$dir/generate"
for kernels in scalar avx2 avx512 bf16 amx neon wasm; do
    if "$dir/generate" --model $model --max-tokens 1 --quiet --kernels $kernels x \
        > "$dir/out" 2> "$dir/err"; then
        text "native, $kernels" "$dir/generate" --kernels $kernels
        text "native, $kernels, 1 thread" "$dir/generate" --kernels $kernels --threads 1
    else
        [ $? -le 2 ] || bad "native, $kernels: ended by a signal" "$dir/err"
        echo "note: no $kernels here: $(head -n 1 "$dir/err")"
    fi
done

# A process must ask before it may use tiles; the requests before main are those of the C library.
if grep -q amx /proc/cpuinfo 2> /dev/null && have "AMX refused" strace; then
    echo 'int main(void) { return 0; }' > "$dir/empty.c"
    "$CC" "$dir/empty.c" -o "$dir/empty"
    strace -e trace=arch_prctl -o "$dir/calls" "$dir/empty"
    first=$(($(grep -c '^arch_prctl' "$dir/calls") + 1))
    text "AMX refused" strace -f -o "$dir/calls" -e trace=arch_prctl \
        -e "inject=arch_prctl:error=EPERM:when=$first+" "$dir/generate"
    echo "    refused: $(grep -c INJECTED "$dir/calls")"
fi

# ---- other machines
emulated() { # emulated NAME COMPILER OPTIONS EMULATOR
    have "$1" "${2%% *}" "${4%% *}" || return
    if build "generate-$1" $2 -O2 -pthread $3 examples/generate.c; then
        text "$1" $4 "$dir/generate-$1"
    fi
    if build "check-$1" $2 -O2 -pthread $3 tools/check.c; then
        numbers "$1" $4 "$dir/check-$1"
    fi
}
if [ "$(uname -m)" = x86_64 ]; then
    emulated nehalem "$CC" -static "qemu-x86_64 -cpu Nehalem"
    emulated haswell "$CC" -static "qemu-x86_64 -cpu Haswell"
    emulated i686 i686-linux-gnu-gcc "-static -msse2 -mfpmath=sse" env
    emulated musl musl-gcc -static env
fi
emulated aarch64 aarch64-linux-gnu-gcc -static qemu-aarch64
emulated riscv64 riscv64-linux-gnu-gcc -static qemu-riscv64
emulated armhf arm-linux-gnueabihf-gcc -static qemu-arm
emulated ppc64le powerpc64le-linux-gnu-gcc -static qemu-ppc64le

# Files are little-endian: a big-endian machine says so.
if have s390x s390x-linux-gnu-gcc qemu-s390x &&
    build generate-s390x s390x-linux-gnu-gcc -O2 -pthread -static examples/generate.c; then
    qemu-s390x "$dir/generate-s390x" --model $model x > "$dir/out" 2> "$dir/err"
    if [ $? -eq 1 ] && grep -q 'endian' "$dir/err"; then
        good
        echo "s390x: refused: $(head -n 1 "$dir/err")"
    else
        bad "s390x: must be refused by name" "$dir/err"
    fi
fi

# ---- WebAssembly and tcc: a program without signals, threads and pages of its own
cat > "$dir/greedy.c" << 'END'
#include <stdio.h>
#include <stdlib.h>
#define MONET_IMPLEMENTATION
#include "monet.h"

static bool print_text(void *user, const char *text, size_t size)
{
    return fwrite(text, 1, size, (FILE *)user) == size;
}

int main(int argc, char **argv) /* MODEL TOKENS PROMPT KERNELS */
{
    monet_error err = {{0}, MONET_OK};
    monet_model *model = NULL;
    monet_session *session = NULL;
    monet_session_config config = {0};
    monet_generate_config generate = {0};
    if (argc != 5) return 2;
    config.kernels = (monet_kernels)atoi(argv[4]);
    generate.max_tokens = (int32_t)atoi(argv[2]);
    generate.text_fn = print_text;
    generate.user = stdout;
    fprintf(stderr, "kernels: %s\n", monet_kernels_name(config.kernels));
    if (monet_model_load(argv[1], NULL, &model, &err) ||
        monet_session_create(model, &config, &session, &err))
        fprintf(stderr, "%s\n", err.message);
    else if (monet_session_generate(session, argv[3], &generate, NULL))
        err = *monet_session_error(session);
    puts("");
    monet_session_free(session);
    monet_model_free(model);
    return err.code != MONET_OK;
}
END
cat > "$dir/wasi.mjs" << 'END'
import {WASI} from 'wasi';
import {readFileSync} from 'fs';
const wasi = new WASI({version: 'preview1', args: process.argv.slice(2), preopens: {'.': '.'}});
const module = await WebAssembly.compile(readFileSync(process.argv[2]));
process.exit(wasi.start(await WebAssembly.instantiate(module, wasi.getImportObject())) || 0);
END
build greedy "$CC" -O2 "$dir/greedy.c"
"$dir/greedy" $model $tokens "$prompt" 1 > "$dir/greedy.txt" 2> "$dir/err" || bad greedy "$dir/err"
want=$dir/greedy.txt
for switch in "" -msimd128; do
    have "wasm32 $switch" clang wasm-ld node || continue
    build "greedy$switch.wasm" clang --target=wasm32-wasi -O2 $switch "$dir/greedy.c" || continue
    for kernels in 0 1; do
        same "wasm32 $switch kernels=$kernels" node --no-warnings "$dir/wasi.mjs" \
            "$dir/greedy$switch.wasm" $model $tokens "$prompt" $kernels
        echo "    $(head -n 1 "$dir/err")"
    done
done
if have tcc tcc && build greedy-tcc tcc "$dir/greedy.c"; then
    same tcc "$dir/greedy-tcc" $model $tokens "$prompt" 0
fi

echo "test_platforms: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
