#!/bin/sh
# Builds every program and runs every test:  sh tests/run.sh
# Needs a C compiler (CC, default cc). A C++ compiler, clang and the sanitizers are used if they are
# there. Prints one line a test, and at the end "N passed, N failed"; exit status 1 if any failed.
set -u
cd "$(dirname "$0")/.." || exit 2
CC=${CC:-cc}
tmp=$(mktemp -d "${TMPDIR:-/tmp}/monet-tests.XXXXXX") || exit 2
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
passed=0 failed=0

# count NAME LOG STATUS: adds the last "N passed, N failed" of LOG; to break off is a failure
count() {
    line=$(grep -E '[0-9]+ passed, [0-9]+ failed' "$2" | tail -n 1)
    good=$(echo "$line" | sed -n 's/.*[^0-9]\([0-9][0-9]*\) passed.*/\1/p')
    bad=$(echo "$line" | sed -n 's/.*passed, \([0-9][0-9]*\) failed.*/\1/p')
    [ -n "$good" ] && [ -n "$bad" ] || { good=0 bad=1; }
    [ "$3" -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
    passed=$((passed + good)) failed=$((failed + bad))
    if [ "$bad" -ne 0 ]; then
        grep -v '^$' "$2" | tail -n 30
        echo "$1: $good passed, $bad failed   <---"
    else
        echo "$1: $good passed, $bad failed"
    fi
}

run() { # run NAME COMMAND...
    name=$1
    shift
    "$@" > "$tmp/log" 2>&1
    count "$name" "$tmp/log" $?
}

check() { # check NAME ARGUMENTS...: tools/check prints "ok" or "FAIL" behind each array or file
    name=$1
    shift
    "$tmp/bin/check" "$@" > "$tmp/log" 2>&1
    status=$?
    good=$(grep -cE ' ok$|, 0 not$' "$tmp/log")
    bad=$(grep -cE 'FAIL$|, [1-9][0-9]* not$' "$tmp/log")
    echo "check: $good passed, $bad failed" >> "$tmp/log"
    count "$name" "$tmp/log" $status
}

build() { # build FILE.c NAME: the line that each program states
    $CC -O2 -pthread -I. "$1" -o "$tmp/bin/$2" -lm > "$tmp/log" 2>&1 || {
        cat "$tmp/log"
        echo "build $1: 0 passed, 1 failed   <---"
        failed=$((failed + 1))
        return 1
    }
    passed=$((passed + 1))
}

# ---- programs
mkdir "$tmp/bin"
for file in tools/*.c examples/*.c; do
    build "$file" "$(basename "$file" .c)"
done
build tests/style.c style && run style "$tmp/bin/style" .
run compile sh tests/compile.sh

# ---- golden numbers: convert each case, compare with what the published model computed
for folder in tests/golden/*/; do
    name=$(basename "$folder")
    model=$tmp/$name.monet
    if [ -f "$folder/config.json" ]; then
        "$tmp/bin/convert" "$folder" "$model" > "$tmp/log" 2>&1 ||
            { count "convert $name" "$tmp/log" 1; continue; }
    else
        model=examples/monet-4m.monet
    fi
    check "golden $name" "$model" "$folder/expected.safetensors" "$folder/expected.json"
done
for file in tests/tokenizer/*.jsonl; do
    name=$(basename "$file" .jsonl)
    for source in "tests/tokenizer/$name.model" "tests/tokenizer/$name.tokenizer.json"; do
        [ -f "$source" ] || continue
        "$tmp/bin/convert" --tokenizer "$source" "$tmp/tokenizer.monet" > "$tmp/log" 2>&1 ||
            { count "convert $source" "$tmp/log" 1; continue; }
        check "tokenizer $(basename "$source")" --tokenizer "$tmp/tokenizer.monet" "$file"
    done
done

# ---- unit tests, with the sanitizers if the compiler has them
sanitize="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
echo 'int main(void) { return 0; }' > "$tmp/probe.c"
$CC $sanitize "$tmp/probe.c" -o "$tmp/probe" > /dev/null 2>&1 && "$tmp/probe" || {
    sanitize="-O1 -g"
    echo "note: no sanitizers here"
}
for file in tests/test_*.c; do
    name=$(basename "$file" .c)
    if $CC -std=c99 $sanitize -pthread -I. -Itests "$file" -o "$tmp/bin/$name" -lm \
        > "$tmp/log" 2>&1; then
        run "$name" "$tmp/bin/$name"
    else
        count "build $name" "$tmp/log" 1
    fi
done

# ---- programs as people use them
run cli sh tests/test_cli.sh "$tmp/bin" examples/monet-4m.monet
run train sh tests/test_train.sh "$tmp/bin"

echo
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
