#!/bin/sh
# Tests bench as a user meets it: tables, CSV, models with random weights, options, signals.
# sh tests/test_bench.sh FOLDER MODEL.monet     FOLDER holds the built program bench
# Figures are not judged: this machine may be doing something else.

bin=$1
model=$2
if [ ! -x "$bin/bench" ] || [ ! -r "$model" ]; then
    echo "usage: sh tests/test_bench.sh FOLDER_WITH_bench MODEL.monet" >&2
    exit 2
fi
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
suite=test_bench
. "$(dirname "$0")/check.sh"
name=$(basename "$model" .monet)

bench() {
    "$bin/bench" "$@" > "$tmp/out" 2> "$tmp/err" < /dev/null
    status=$?
}

# field TASK COLUMN: of the CSV, one line each
field() { awk -F, -v task="$1" -v n="$2" '$6 == task { print $n }' "$tmp/figures.csv"; }
positive() { [ -n "$1" ] && echo "$1" | awk '{ exit !($1 > 0) }'; }

# ---- a model

bench --quick --prompt 16,40 --decode 4 --at 8 --repeats 2 -t 1,2 --csv "$tmp/figures.csv" "$model"
check "a model" is_status 0
check "the processor" out_has '^processor .* best kernels: '
check "the limits" out_has '^limits .* read [0-9.]* GB/s .* f32 ([a-z0-9]*) [0-9][0-9]*'
check "what the model is" out_has "^model  *$name: .* active half-experts [0-9.]* %"
check "a prompt" out_has "^$name .* 1  prompt 40 .* GFLOP .* %"
check "decoding" out_has "^$name .* 2  decode 4 at 8 .* GB .* read .* %"
check "scaling" [ "$(grep -c '^scaling .*x with 2 threads$' "$tmp/out")" -eq 3 ]
check "start of a process" out_has '^start .* first answer after [0-9.]* ms'
check "memory" out_has '^memory .* resident; file '
check "two rounds on stderr" err_has '^round 2 of 2: '
check "CSV: a head, 6 figures, 5 of the start" lines "$tmp/figures.csv" 12
check "CSV: every line has 17 columns" [ -z "$(awk -F, 'NF != 17' "$tmp/figures.csv")" ]
check "CSV: best is not below the median" \
    [ -z "$(awk -F, '$11 == "tokens/s" && $9 < $10' "$tmp/figures.csv")" ]
check "CSV: speeds" positive "$(field decode 9 | head -n 1)"
check "CSV: needs" positive "$(field prompt 12 | head -n 1)"
check "CSV: limits" positive "$(field decode 14 | head -n 1)"
check "CSV: the file's size" [ "$(field file 9)" -eq "$(wc -c < "$model")" ]
check "CSV: the session's size" positive "$(field session 9)"
if [ -r /proc/self/status ]; then
    check "CSV: the process held the most of the file" \
        [ "$(field resident 9)" -gt "$(($(field file 9) / 2))" ]
fi
first=$(field first 9) load=$(field load 9)
check "CSV: the answer comes after loading" \
    positive "$(awk -v a="$first" -v b="$load" 'BEGIN { print a - b }')"

# ---- models with random weights

bench --shape nano --dtype bf16 --decompose hd --write "$tmp/a,b.monet"
check "a random model is written" is_status 0
bench --shape NANO --dtype f32 --write "$tmp/f32.monet"
check "capitals in the name of a shape" is_status 0
bench --no-start --prompt 8 --decode 2 --at 2 --repeats 1 --mode both --kernels scalar,scalar \
    --csv "$tmp/figures.csv" "$tmp/f32.monet" "$tmp/a,b.monet" --train nano
check "two files and a training" is_status 0
check "equal kernels are measured once" out_has '^note  *kernels scalar are scalar here'
check "a quarter of the half-experts" out_has '^model  *f32: vertical.* half-experts [12][0-9]\.'
check "horizontal" out_has '^model  *a,b: horizontal.*mostly bf16'
check "the second file against the first" out_has '^a,b .*exact .*prompt 8.* %.* [0-9.]*x$'
check "training" out_has '^nano vd .* f32 .* training '
check "no start" [ "$(grep -c '^start' "$tmp/out")" -eq 0 ]
check "CSV: 8 figures and training" lines "$tmp/figures.csv" 10
check "CSV: names in quotes" grep -q '^"a,b",bf16,scalar,fast,' "$tmp/figures.csv"
bench --no-start --prompt none --decode 0 --train nano --decompose hd --quick -t 1
check "training alone" is_status 0
check "training alone: one figure" [ "$(grep -c '^nano hd .*training' "$tmp/out")" -eq 1 ]

bench --no-start --prompt 8 --decode 2 --at 2 --repeats 1 -t 1 \
    --edits capture,remove:1000,scale:1,force:3 --csv "$tmp/figures.csv" "$tmp/f32.monet"
check "edits" is_status 0
check "edits: a prompt with experts removed, against the plain one" \
    out_has '^f32 remove:1000 .*prompt 8.* %.* [0-9.]*x$'
check "edits: decoding with experts forced" out_has '^f32 force:3 .*decode 2.* [0-9.]*x$'
check "CSV: 10 figures" lines "$tmp/figures.csv" 11
bench --no-start --quick --edits remove:1025 "$tmp/f32.monet"
check "more experts than there are" err_has 'has 1024 experts a layer, not 1025'

# ---- what goes wrong

for list in remove remove: remove:0 remove:1x capture:1 plain forget:1; do
    bench --edits "$list" "$model"
    check "--edits $list" err_has "'$list' is none of capture, remove:N"
done

bench --help
check "--help" out_has '^  --kernels LIST'
bench
check "no model is status 2" is_status 2
bench --mode quick "$model"
check "an unknown mode" err_has "'quick' is none of exact, fast"
bench --kernels avx512,sse9 "$model"
check "unknown kernels" err_has "'sse9' is none of best, scalar"
bench --prompt 16,x "$model"
check "a prompt that is no number" err_has "'x' is not a whole number"
bench --threads 0 "$model"
check "no threads" err_has "'0' is not a whole number from 1"
bench --train big
check "an unknown shape" err_has "train: 'big' is not 850m"
bench --shape nano
check "--shape without --write" err_has "belong together"
bench --shape nano --dtype f64 --write "$tmp/c.monet"
check "an unknown type" err_has "'f64' is not f32"
bench --shape nano --write "$tmp/none/c.monet"
check "a folder that is not there" is_status 1
bench "$tmp/none.monet"
check "a missing model is named" err_has "none.monet"
check "a missing model is status 1" is_status 1
head -c 5000 "$model" > "$tmp/cut.monet"
bench --quick "$tmp/cut.monet"
check "a damaged model is named" err_has "cut.monet"

# ---- Ctrl-C

"$bin/bench" --prompt 4 --decode 2 --at 2 --repeats 100 --no-start "$tmp/f32.monet" \
    > "$tmp/out" 2> "$tmp/err" &
pid=$!
tries=0
while ! err_has '^round 2 ' && [ "$tries" -lt 50 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
kill -INT "$pid"
wait "$pid"
status=$?
check "Ctrl-C is status 130" is_status 130
check "Ctrl-C prints what was measured" out_has '^f32 .*prompt 4 '
check "Ctrl-C says so" out_has '^interrupted'

echo "test_bench: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
