#!/bin/sh
# Builds every program and runs every test:  sh tests/run.sh
#
# Needs a C compiler (CC, default cc). A C++ compiler, clang and the sanitizers are used if they are
# there. JOBS tests run at a time (default: one a processor). Prints one line a test, and at the end
# "N passed, N failed"; exit status 1 if any failed.
#
# A file tests/test_NAME.c is built with the sanitizers and run, without arguments, by being here;
# a file tests/test_NAME.sh is run with the folder of the built programs and the shipped model.
# Each says "N passed, N failed" in its last line. By hand only: tests/test_platforms.sh.
set -u
cd "$(dirname "$0")/.." || exit 2
CC=${CC:-cc}
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN 2> /dev/null || echo 2)}
model=examples/monet-4m.monet
tmp=$(mktemp -d "${TMPDIR:-/tmp}/monet-tests.XXXXXX") || exit 2
mkdir "$tmp/bin" "$tmp/job" "$tmp/scratch"
: > "$tmp/list"
export TMPDIR="$tmp/scratch"
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0

# A shell without job control starts its background processes deaf to Ctrl-C. Tests of signals need
# to hear it: "hears COMMAND" runs a command so.
cat > "$tmp/hears.c" << END
#include <signal.h>
#include <unistd.h>
int main(int n, char **words)
{
    signal(SIGINT, SIG_DFL);
    return n < 2 || execvp(words[1], words + 1);
}
END
$CC "$tmp/hears.c" -o "$tmp/hears" || { echo "no C compiler: CC=$CC"; exit 2; }

# Ends everything that was started here, children of children too.
stop() {
    trap '' INT TERM HUP
    ps -A -o pid= -o ppid= > "$tmp/ps"
    of=$$ all=
    while [ -n "$of" ]; do
        of=$(awk -v of=" $of " 'index(of, " " $2 " ") { printf "%s ", $1 }' "$tmp/ps")
        all="$all $of"
    done
    [ -n "$all" ] && kill $all 2> /dev/null
    wait
    exit 130
}
trap stop INT TERM HUP

# ---- jobs: the list is worked off by JOBS shells at a time, and its results are shown in its order

job() { # job NAME COMMAND WORDS: none of the words has a blank
    echo "$@" >> "$tmp/list"
}

nap() { sleep 0.1 2> /dev/null || sleep 1; }

work() { # does each job that nobody else has begun
    n=0
    while read -r name command; do
        n=$((n + 1))
        mkdir "$tmp/job/$n" 2> /dev/null || continue
        ( $command ) > "$tmp/job/$n/log" 2>&1 < /dev/null
        echo $? > "$tmp/job/$n/ends"
        mv "$tmp/job/$n/ends" "$tmp/job/$n/status"
    done < "$tmp/list"
}

# count NAME LOG STATUS: adds the last "N passed, N failed" of LOG; to break off is a failure
count() {
    line=$(grep -E '[0-9]+ passed, [0-9]+ failed' "$2" | tail -n 1)
    good=$(echo " $line" | sed -n 's/.*[^0-9]\([0-9][0-9]*\) passed.*/\1/p')
    bad=$(echo "$line" | sed -n 's/.*passed, \([0-9][0-9]*\) failed.*/\1/p')
    [ -n "$good" ] && [ -n "$bad" ] || { good=0 bad=1; }
    [ "$3" -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
    passed=$((passed + good)) failed=$((failed + bad))
    if [ "$bad" -ne 0 ]; then
        grep -v '^$' "$2" | tail -n 30
        echo "$1: $good passed, $bad failed   <---"
    else
        case $1 in build:*) ;; *) echo "$1: $good passed, $bad failed" ;; esac
    fi
}

report() { # shows each result as soon as it and those before it are there
    n=0
    while read -r name command; do
        n=$((n + 1))
        until [ -e "$tmp/job/$n/status" ]; do nap; done
        count "$name" "$tmp/job/$n/log" "$(cat "$tmp/job/$n/status")"
    done < "$tmp/list"
}

# ---- what a job does

made() { # made NAME COMMAND...: a compiler call that makes $tmp/bin/NAME, or NAME.failed
    out=$1
    shift
    if "$@" -o "$tmp/bin/part.$out" -lm; then
        mv "$tmp/bin/part.$out" "$tmp/bin/$out"
        echo "$out: 1 passed, 0 failed"
    else
        : > "$tmp/bin/$out.failed"
        return 1
    fi
}

need() { # need NAME...: waits for what another job makes
    for what in "$@"; do
        until [ -e "$tmp/bin/$what" ] || [ -e "$tmp/bin/$what.failed" ]; do nap; done
        [ -e "$tmp/bin/$what" ] || { echo "$what could not be built"; return 1; }
    done
}

# The line that each program states. Those that follow skip the implementation and take the object.
program() { made "$(basename "$1" .c)" $CC -O2 -pthread -I. "$1"; }
object() { # object NAME.o FLAGS...
    out=$1
    shift
    printf '#define MONET_%s\n' THREADS IMPLEMENTATION > "$tmp/$out.c"
    echo '#include "monet.h"' >> "$tmp/$out.c"
    made "$out" $CC "$@" -pthread -I. -c "$tmp/$out.c"
}
linked() {
    need monet.o &&
        made "$(basename "$1" .c)" $CC -O2 -pthread -I. -DMONET_IMPLEMENTATION_ONCE "$1" \
            "$tmp/bin/monet.o"
}

style() { need style && "$tmp/bin/style" .; }

check() { # check ARGUMENTS...: tools/check prints "ok" or "FAIL" behind each array or file
    need check || return 1
    "$tmp/bin/check" "$@" > "$tmp/check.$n" 2>&1
    status=$?
    cat "$tmp/check.$n"
    good=$(grep -cE ' ok$|, 0 not$' "$tmp/check.$n")
    bad=$(grep -cE 'FAIL$|, [1-9][0-9]* not$' "$tmp/check.$n")
    echo "check: $good passed, $bad failed"
    return $status
}

golden() { # golden FOLDER: converts the case, compares with what the published model computed
    numbers=$model
    if [ -f "$1/config.json" ]; then
        numbers=$tmp/$(basename "$1").monet
        need convert && "$tmp/bin/convert" "$1" "$numbers" || return 1
    fi
    check "$numbers" "$1/expected.safetensors" "$1/expected.json"
}

tokenizer() { # tokenizer SOURCE TEXTS
    out=$tmp/$(basename "$1").monet
    need convert && "$tmp/bin/convert" --tokenizer "$1" "$out" || return 1
    check --tokenizer "$out" "$2"
}

unit() { # unit FILE.c
    flags=$sanitize # test_quant measures a model on a text: minutes without optimisation
    [ "$1" = tests/test_quant.c ] && flags=-O2
    case " $interface " in
    *" $(basename "$1" .c) "*)
        need checked.o || return 1
        flags="$flags -DMONET_IMPLEMENTATION_ONCE $tmp/bin/checked.o"
        ;;
    esac
    made "$(basename "$1" .c)" $CC -std=c99 -pthread -I. -Itests "$1" $flags || return 1
    "$tmp/hears" "$tmp/bin/$(basename "$1" .c)"
}

script() { need $programs && "$tmp/hears" sh "$1" "$tmp/bin" "$model"; }

# ---- the list: first what others wait for

programs=
job build:monet.o object monet.o -O2
job build:generate program examples/generate.c
job build:style program tests/style.c
for file in tools/*.c examples/*.c; do
    name=$(basename "$file" .c)
    programs="$programs $name"
    [ "$name" = generate ] || job "build:$name" linked "$file"
done
job style style
job compile sh tests/compile.sh

for file in tests/test_*.sh; do
    name=$(basename "$file" .sh)
    [ "$name" = test_platforms ] || job "${name#test_}" script "$file"
done
for folder in tests/golden/*/; do
    job "golden:$(basename "$folder")" golden "${folder%/}"
done
for file in tests/tokenizer/*.jsonl; do
    for source in "${file%.jsonl}.model" "${file%.jsonl}.tokenizer.json"; do
        [ -f "$source" ] && job "tokenizer:$(basename "$source")" tokenizer "$source" "$file"
    done
done

# Without optimisation: to compile the header takes longer than to run most of the tests.
sanitize="-O0 -fsanitize=address,undefined -fno-sanitize-recover=all"
echo 'int main(void) { return 0; }' > "$tmp/probe.c"
$CC $sanitize "$tmp/probe.c" -o "$tmp/probe" > /dev/null 2>&1 && "$tmp/probe" || {
    sanitize="-O1"
    echo "note: no sanitizers here"
}
# These use nothing but the interface: to compile the header once is enough for all of them.
interface="test_api test_convert test_domains test_export test_planted test_stats"
interface="$interface test_texts test_threads test_tokenizer"
job build:checked.o object checked.o -std=c99 $sanitize
for file in tests/test_*.c; do
    job "$(basename "$file" .c)" unit "$file"
done

# ---- all of it

while [ "$JOBS" -gt 0 ]; do
    work &
    JOBS=$((JOBS - 1))
done
report
echo
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
