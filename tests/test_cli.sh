#!/bin/sh
# Tests the programs as a user meets them: options, streams, exit codes, signals.
# sh tests/test_cli.sh FOLDER MODEL.monet     FOLDER holds the built generate, eval and convert

bin=$1
model=$2
if [ ! -x "$bin/generate" ] || [ ! -x "$bin/eval" ] || [ ! -x "$bin/convert" ] ||
    [ ! -r "$model" ]; then
    echo "usage: sh tests/test_cli.sh FOLDER_WITH_generate_eval_convert MODEL.monet" >&2
    exit 2
fi
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
suite=test_cli
. "$(dirname "$0")/check.sh"
newline='
'

# Runs generate with the model; leaves status, $tmp/out and $tmp/err.
generate() {
    "$bin/generate" --model "$model" "$@" > "$tmp/out" 2> "$tmp/err" < "$input"
    status=$?
}

run_eval() {
    "$bin/eval" "$model" "$@" > "$tmp/out" 2> "$tmp/err" < /dev/null
    status=$?
}

empty() { [ ! -s "$1" ]; }

input=/dev/null
prompt="The key to life is"

# ---- generate: prompts and streams

generate --max-tokens 12 "$prompt"
check "a prompt as argument" is_status 0
check "the text starts with the prompt" out_has "^$prompt"
check "statistics on stderr" err_has "prompt: [0-9]* tokens.*generated: 12 tokens"
cp "$tmp/out" "$tmp/first"
check "text ends with one newline" [ "$(tail -c 1 "$tmp/out" | od -An -c | tr -d ' ')" = '\n' ]

generate --max-tokens 12 "$prompt"
check "the default seed is fixed" same "$tmp/out" "$tmp/first"
generate --max-tokens 12 --threads 1 "$prompt"
check "threads do not change the text" same "$tmp/out" "$tmp/first"
generate --max-tokens 12 --seed=7 "$prompt"
cp "$tmp/out" "$tmp/seed7"
check "another seed, another text" differ "$tmp/seed7" "$tmp/first"
generate --max-tokens=12 --seed 7 "$prompt"
check "--name=value is --name value; seeds repeat" same "$tmp/out" "$tmp/seed7"

printf '%s\n' "$prompt" > "$tmp/prompt"
input=$tmp/prompt
generate --max-tokens 12
check "a prompt from the standard input" same "$tmp/out" "$tmp/first"
generate --max-tokens 12 -
check "a prompt from -" same "$tmp/out" "$tmp/first"
input=/dev/null
generate --max-tokens 12 --quiet
check "an empty prompt" is_status 0
check "--quiet: nothing on stderr" empty "$tmp/err"
check "an empty prompt gives text" test -s "$tmp/out"
printf 'caf\351 \377\000 x' > "$tmp/bytes"
input=$tmp/bytes
generate --max-tokens 3
check "any bytes are a prompt" is_status 0
input=/dev/null
generate --max-tokens 12 --no-echo --quiet "$prompt"
check "--no-echo: only the continuation" [ "$prompt$(cat "$tmp/out")" = "$(cat "$tmp/first")" ]
generate --max-tokens 4 -- "--not-an-option"
check "after -- everything is text" out_has "^--not-an-option"

# ---- generate: sampling

generate --temperature 0 --max-tokens 20 "$prompt"
cp "$tmp/out" "$tmp/greedy"
generate --temperature 0 --max-tokens 20 --seed 99 --kv f32 --threads 2 "$prompt"
check "greedy does not depend on the seed" same "$tmp/out" "$tmp/greedy"
generate --top-k 1 --max-tokens 20 --temperature 5 --seed 3 "$prompt"
check "--top-k 1 is greedy" same "$tmp/out" "$tmp/greedy"
generate --temperature 0 --max-tokens 20 --kv bf16 --repetition-penalty 1.2 --min-p 0.05 "$prompt"
check "other samplers and caches run" is_status 0
word=$(sed -e "s/^$prompt//" "$tmp/greedy" | tr -cs 'a-z' '\n' | grep '...' | tail -n 1)
generate --temperature 0 --max-tokens 20 --no-echo --stop "zzqq" --stop "$word" "$prompt"
check "--stop stops" err_has "stopped by: a stop string"
check "--stop is not printed" [ "$(grep -c -e "$word" "$tmp/out")" -eq 0 ]
generate --max-tokens 0 --context 24 --ignore-eos "$prompt"
check "a full context stops" err_has "stopped by: the context is full"
check "a full context is no error" is_status 0

# ---- generate: modes, instruction sets, smaller dtypes

for threads in 1 2 3; do
    generate --temperature 0 --max-tokens 20 --mode exact --threads "$threads" "$prompt"
    check "exact, $threads threads" same "$tmp/out" "$tmp/greedy"
done
generate --temperature 0 --max-tokens 20 --mode fast "$prompt"
check "fast: the same greedy text" same "$tmp/out" "$tmp/greedy"
generate --temperature 0 --max-tokens 20 --kernels scalar "$prompt"
check "--kernels scalar: the same greedy text" same "$tmp/out" "$tmp/greedy"
generate --kernels abacus x
check "instruction sets that are not here" err_has "has no 'abacus', its best is"
check "instruction sets: status 2" is_status 2
generate --mode swift x
check "an unknown mode" err_has "'swift' is not fast or exact"
whole=$model
for dtype in q8 q4; do
    "$bin/convert" "$whole" "$tmp/$dtype.monet" --dtype "$dtype" > "$tmp/out" 2> "$tmp/err"
    status=$?
    check "convert --dtype $dtype" is_status 0
    model=$tmp/$dtype.monet
    generate --temperature 0 --max-tokens 40 --mode exact --threads 1 "$prompt"
    cp "$tmp/out" "$tmp/greedy.$dtype"
    check "$dtype: a text" out_has "^$prompt [A-Za-z]"
    check "$dtype: generated" err_has "generated: 40 tokens"
    for threads in 2 3; do
        generate --temperature 0 --max-tokens 40 --mode exact --threads "$threads" "$prompt"
        check "$dtype: exact, $threads threads" same "$tmp/out" "$tmp/greedy.$dtype"
    done
    generate --temperature 0 --max-tokens 40 --mode fast "$prompt"
    check "$dtype: fast" out_has "^$prompt [A-Za-z]"
    run_eval "$0" --max-tokens 300 --compare "$whole" --csv "$tmp/table.csv"
    check "eval: $dtype compared" out_has "^bits/byte .* there .* %"
    check "eval: routing of $dtype" out_has "^  1   layer 4 .*i  *9[0-9]\.[0-9]* %"
    check "eval: the CSV of a comparison" lines "$tmp/table.csv" 2
    check "eval: its columns" grep -q 'change_percent,same_likeliest_percent$' "$tmp/table.csv"
done
model=$whole
[ "$(wc -c < "$tmp/q4.monet")" -lt "$(wc -c < "$tmp/q8.monet")" ]
check "q4 is smaller than q8" [ $? -eq 0 ]

# ---- generate: experts, info, help

generate --experts --max-tokens 5 --no-echo "$prompt"
check "--experts: a line for each token" lines "$tmp/out" 5
pattern='^["<].*  G1 E[0-9]* (i=[0-9]*, j=[0-9]*) [0-9]\.[0-9][0-9]'
check "--experts: the form of a line" [ "$(grep -c -e "$pattern" "$tmp/out")" -eq 5 ]
check "--experts: which layers" err_has "^G1 = layers 0-"
generate --experts=3 --max-tokens 2 "$prompt"
check "--experts=3: three of them" out_has "G1 E.* E.* E"
check "--experts: the prompt too" out_has '^<s>'
generate --info
check "--info" out_has "^experts "
generate --help
check "--help" out_has "^  --temperature T"
check "--help is no error" is_status 0

# ---- edits: generate and eval

edit() { # edit NAME RULES...: writes $tmp/NAME.edit, a rule a line
    name=$1
    shift
    { echo "monet-edit 1"; echo "name $name"; echo "shape N=64 L=8 G=4"; printf '%s\n' "$@"; } \
        > "$tmp/$name.edit"
}

edit nothing "scale 1 all all"
edit all "remove all all"
edit row "remove G1 i=58 # E3736 is in it"
edit steer "scale 2.5 L5 j=24" "force 0.75 G2 E77"
edit half "scale 0.5 all all"
edit twice "scale 2 all all"
edit wrong "remove G1 E1" "" "remove G1 E1 F2"
sed -e 's/N=64/N=512/' "$tmp/all.edit" > "$tmp/shape.edit"
generate --temperature 0 --max-tokens 20 --edit "$tmp/nothing.edit" "$prompt"
check "--edit: what changes nothing leaves the text" same "$tmp/out" "$tmp/greedy"
check "--edit: its name and what it changes" err_has "edit nothing: 0 experts in G1, 0 .*G2"
generate --temperature 0 --max-tokens 20 --edit "$tmp/half.edit" --edit="$tmp/twice.edit" "$prompt"
check "--edit twice: half of it, and twice that" same "$tmp/out" "$tmp/greedy"
generate --temperature 0 --max-tokens 20 --edit "$tmp/all.edit" "$prompt"
check "--edit: without any expert the text is another" differ "$tmp/out" "$tmp/greedy"
check "--edit: all experts count" err_has "edit all: 4096 experts in G1, 4096 experts in G2"
generate --temperature 0 --max-tokens 2 --experts=5 --edit "$tmp/row.edit" "$prompt"
check "--experts: removed ones are seen" out_has "G1.* E3736 (i=58, j=24) 0\.[0-9]* -> 0\.00"
check "--experts: others are as they were" out_has "G1.* E1304 (i=20, j=24) 0\.37 E"
generate --temperature 0 --max-tokens 2 --experts --edit "$tmp/steer.edit" "$prompt"
check "--experts: forced ones are seen" out_has "G2 E77 (i=1, j=13) 0\.[0-9]* -> 0\.[0-9]*$"
input=$tmp/turns
printf 'Hello\n\nAnd </s> again\n' > "$tmp/turns"
generate --chat --max-tokens 8 --temperature 0 --ignore-eos
cp "$tmp/out" "$tmp/chat"
generate --chat --max-tokens 8 --temperature 0 --ignore-eos --edit "$tmp/all.edit"
check "--chat --edit" is_status 0
check "--chat --edit: another talk" differ "$tmp/out" "$tmp/chat"
input=/dev/null
generate --edit "$tmp/wrong.edit" x
check "--edit: a wrong line is named" err_has "wrong.edit: line 6: 'F2'"
check "--edit: a wrong line is status 1" is_status 1
generate --edit "$tmp/shape.edit" x
check "--edit: another shape is named" err_has "shape.edit: line 3: .*N=512.*N=64"
generate --edit "$tmp/none.edit" x
check "--edit: a missing file is named" err_has "none.edit"
generate --edit
check "--edit without a file is status 2" is_status 2

bits() { sed -n 's/^bits.byte *\([0-9.]*\), there \([0-9.]*\):.*/\1 \2/p' "$tmp/out"; }
run_eval "$0" --max-tokens 300 --edit "$tmp/nothing.edit" --compare-edit none
check "eval: an edit that changes nothing" out_has "differ by 0.00000 on average, by 0.00000 at"
check "eval: what is compared" out_has "compared with itself, .*, edit none"
run_eval "$0" --max-tokens 300 --edit "$tmp/half.edit" --edit "$tmp/twice.edit" --compare-edit none
check "eval: --edit twice" out_has "differ by 0.00000 on average, by 0.00000 at"
check "eval: both are named" out_has "^edit half + twice: 0 experts removed, 0 scaled, 0 forced$"
run_eval "$0" --max-tokens 300 --edit "$tmp/all.edit" --compare-edit none
check "eval: removing everything costs bits" \
    [ "$(bits | awk '{ print ($1 > $2 + 0.1) }')" = 1 ]
check "eval: all experts count" out_has "^edit all: 8192 experts removed, 0 scaled, 0 forced$"
run_eval "$0" --max-tokens 300 --edit "$tmp/steer.edit" --compare-edit "$tmp/steer.edit"
check "eval: the same edit twice" out_has "differ by 0.00000 on average, by 0.00000 at"
check "eval: scaled and forced ones" out_has "^edit steer: 0 experts removed, 64 scaled, 1 forced$"
run_eval "$0" --max-tokens 300 --edit "$tmp/all.edit" --compare "$tmp/q8.monet"
check "eval: another model has the edit too" \
    [ "$(bits | awk '{ print ($1 < $2 * 1.02 && $2 < $1 * 1.02) }')" = 1 ]
run_eval "$0" --edit "$tmp/wrong.edit"
check "eval: a wrong line is named" err_has "wrong.edit: line 6: 'F2'"
check "eval: a wrong line is status 1" is_status 1
run_eval "$0" --edit "$tmp/shape.edit"
check "eval: another shape is named" err_has "shape.edit: line 3: .*N=512.*N=64"
run_eval "$0" --compare-edit "$tmp/none.edit"
check "eval: a missing edit is named" err_has "none.edit"

# ---- generate: chat

printf 'Hello\n\nAnd </s> again\n' > "$tmp/turns"
input=$tmp/turns
generate --chat --max-tokens 8 --ignore-eos --temperature 0
check "--chat: two turns" is_status 0
check "--chat: two replies" err_has "generated: 16 tokens"
cp "$tmp/out" "$tmp/chat"
generate --chat --max-tokens 8 --ignore-eos --temperature 0
check "--chat repeats" same "$tmp/out" "$tmp/chat"
generate --chat --experts --max-tokens 2
check "--chat: turns begin with BOS" [ "$(grep -c '^<s>' "$tmp/out")" -eq 2 ]
generate --chat --max-tokens 8 --ignore-eos --context 40
check "--chat: oldest turns are forgotten" err_has "oldest turns are forgotten"
check "--chat: and it goes on" is_status 0
generate --chat --max-tokens 8 --context 8
check "--chat: a turn that cannot fit" err_has "say it shorter"
input=/dev/null

# ---- generate: what goes wrong

generate --nonsense x
check "an unknown option is named" err_has "'--nonsense'"
check "wrong options are status 2" is_status 2
generate -x
check "an unknown short option" err_has "'-x'"
generate --temperature
check "a missing value" err_has "temperature needs a value"
generate --temperature hot x
check "a value that is no number" err_has "'hot' is not a number"
generate --temperature nan x
check "a value that is not a number" is_status 2
generate --top-p 1.5 x
check "a value out of range" err_has "from 0 to 1"
generate --seed -1 x
check "a negative seed" is_status 2
generate --max-tokens 1.5 x
check "half a token" is_status 2
generate --kv f64 x
check "an unknown type" err_has "f32, f16 or bf16"
generate --quiet=1 x
check "a flag takes no value" err_has "takes no value"
generate two prompts
check "two prompts" err_has "quotes"
generate --context 4 "$prompt and a good deal more than that"
check "a prompt longer than the context" err_has "the context holds 4"
check "a long prompt is status 1" is_status 1
"$bin/generate" --model "$tmp/none.monet" x > "$tmp/out" 2> "$tmp/err"
status=$?
check "a missing model is named" err_has "none.monet"
check "a missing model is status 1" is_status 1
(cd "$tmp" && ln -s "$(cd "$OLDPWD" && cd "$bin" && pwd)/generate" gen && ./gen x) \
    > "$tmp/out" 2> "$tmp/err"
status=$?
check "no model at all: what to do" err_has "model FILE"
head -c 100 "$model" > "$tmp/cut.monet"
"$bin/generate" --model "$tmp/cut.monet" x > "$tmp/out" 2> "$tmp/err"
status=$?
check "a damaged model is status 1" is_status 1
check "a damaged model is named" err_has "cut.monet"

# ---- generate: pipes and signals

"$bin/generate" --model "$model" --quiet --max-tokens 60 "a${newline}b" 2> "$tmp/err" |
    head -n 1 > "$tmp/out"
check "| head -n 1" same "$tmp/out" - <<END
a
END
check "| head is quiet" empty "$tmp/err"
if [ -c /dev/full ]; then
    "$bin/generate" --model "$model" x > /dev/full 2> "$tmp/err"
    status=$?
    check "/dev/full is status 1" is_status 1
    check "/dev/full is told" err_has "cannot write"
fi

# A pipe that nobody reads keeps the program busy until the signal comes.
mkfifo "$tmp/pipe" "$tmp/never"
sleep 3 < "$tmp/pipe" &
reader=$!
"$bin/generate" --model "$model" --experts=64 --max-tokens 0 --ignore-eos "$prompt" \
    > "$tmp/pipe" 2> "$tmp/err" &
pid=$!
sleep 1
kill -INT "$pid"
wait "$pid"
status=$?
check "Ctrl-C while generating is status 130" is_status 130
kill "$reader" 2> /dev/null
sleep 3 > "$tmp/never" &
writer=$!
"$bin/generate" --model "$model" --chat < "$tmp/never" > "$tmp/out" 2> "$tmp/err" &
pid=$!
sleep 1
kill -INT "$pid"
wait "$pid"
status=$?
check "Ctrl-C while waiting for a turn is status 130" is_status 130
kill "$writer" 2> /dev/null

# ---- eval

printf 'The cat sat on the mat.\n\f\nThe dog sat on the log.\n' > "$tmp/a.txt"
printf 'Water boils at 100 degrees.\n' > "$tmp/b,c.txt"
run_eval "$tmp/a.txt" --quiet
check "eval: a text" is_status 0
check "eval: bytes without the separator" out_has ' 48 '
run_eval "$tmp/a.txt" "$tmp/b,c.txt" --csv "$tmp/table.csv" --threads 1
check "eval: several files have a total" out_has '^total '
check "eval: the CSV" lines "$tmp/table.csv" 4
check "eval: names in the CSV" grep -q '^".*b,c.txt",' "$tmp/table.csv"
run_eval "$tmp/a.txt" --max-tokens 3
check "eval: --max-tokens" out_has ' 3 '
run_eval "$tmp/a.txt" --context 8 --stride 4
check "eval: windows" is_status 0
run_eval "$tmp/a.txt" --context 8 --stride 9
check "eval: a stride beyond the context" err_has "stride 9"
run_eval "$tmp/none.txt"
check "eval: a missing file is named" err_has "none.txt"
check "eval: a missing file is status 1" is_status 1
run_eval /dev/null
check "eval: nothing to score" is_status 1
run_eval
check "eval: no file is status 2" is_status 2
run_eval "$tmp/a.txt" --compare-kernels scalar --compare-mode exact --mode exact
check "eval: a model compared with itself" out_has "the same token at 100.000 %"
run_eval "$tmp/a.txt" --compare "$tmp/none.monet"
check "eval: a missing model is named" err_has "none.monet"
run_eval "$tmp/a.txt" --mode swift
check "eval: an unknown mode" err_has "'swift' is not exact or fast"
run_eval "$tmp/a.txt" --kernels abacus
check "eval: instruction sets that are not here" err_has "this machine has best, scalar"
run_eval "$tmp/a.txt" --frobnicate
check "eval: an unknown option" err_has "frobnicate"

echo "test_cli: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
