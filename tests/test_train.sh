#!/bin/sh
# Tests examples/train as a user meets it: runs, resuming, signals, full disks, wrong options.
# sh tests/test_train.sh FOLDER [long]     FOLDER holds the built programs train and generate
#
# long: kill -9 at 100 random times, at least half of them while a checkpoint is being written, and
# a stop after each of 30 steps with 1, 2 and 3 threads. The end must always be the same bytes.

if [ ! -x "$1/train" ] || [ ! -x "$1/generate" ]; then
    echo "usage: sh tests/test_train.sh FOLDER_WITH_train_AND_generate [long]" >&2
    exit 2
fi
bin=$(cd "$1" && pwd)
tmp=$(mktemp -d) || exit 2
suite=train
. "$(dirname "$0")/check.sh"
pid=
trap 'chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT
trap '[ -n "$pid" ] && kill -9 "$pid" 2> /dev/null; exit 130' INT TERM HUP
cd "$tmp" || exit 2

# Runs train; leaves status, out and err.
train() {
    "$bin/train" "$@" > out 2> err < /dev/null
    status=$?
}

# Begins a run in the background and waits until its log has $1 rows; leaves pid.
train_until() {
    rows=$1
    shift
    "$bin/train" "$@" > out 2> err < /dev/null &
    pid=$!
    tries=0
    while [ "$(cat run/log.csv 2> /dev/null | wc -l)" -le "$rows" ] && [ $tries -lt 200 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
}

end_of() {
    wait "$1" 2> /dev/null
    status=$?
}

none() { [ ! -e "$1" ]; }
no_temps() { [ -z "$(ls "$1" | grep '\.tmp\.')" ]; }

# refused NAME STATUS WORDS OPTIONS...: such options end before anything is made
refused() {
    name=$1
    wanted=$2
    words=$3
    shift 3
    train --out refused "$@"
    check "$name: status $wanted" is_status "$wanted"
    check "$name: says why" err_has "$words"
    check "$name: leaves nothing behind" none refused
    rm -rf refused
}

# The log without its timing columns.
table() { cut -d , -f 1-12 "$1/log.csv" > "$2"; }

# same_end NAME FOLDER [WHOLE]: the same checkpoint, model and log as the run that was left alone
same_end() {
    whole=${3:-whole}
    table "$2" table
    check "$1: the same checkpoint" same "$2/ckpt-30.monet" "$whole/ckpt-30.monet"
    check "$1: the same model" same "$2/model.monet" "$whole/model.monet"
    check "$1: the same log" same table whole.table
}

# ---- texts: sentences of a small grammar, documents parted by form feeds
mkdir texts texts/more
awk 'BEGIN {
    split("the a one this", d); split("cat dog bird fish tree", n); split("sees eats likes", v)
    x = 1
    for (i = 1; i <= 160; i++) {
        s = ""
        for (k = 1; k <= 5; k++) {
            x = (x * 16807) % 2147483647
            m = int(x / 1000)
            w = k == 3 ? v[m % 3 + 1] : k % 3 == 1 ? d[m % 4 + 1] : n[m % 5 + 1]
            s = s (k > 1 ? " " : "") w
        }
        print s "."
        if (i % 8 == 0) print "\f"
    }
}' > texts/a.train.txt
head -n 90 texts/a.train.txt > texts/more/b.train.txt
tail -n 50 texts/a.train.txt > texts/c.valid.txt
echo "hidden" > texts/.hidden.train.txt

shape="--dim 16 --layers 2 --heads 2 --experts 4 --expert-dim 4 --router-heads 2 --topk 1
    --groups 2 --context 32"
recipe="$shape --batch 2 --accumulate 2 --steps 30 --warmup 5 --lr 0.01 --log-every 1 --seed 3"
data="texts --train-match *.train.txt --valid-match *.valid.txt --valid-every 10 --valid-tokens 96"
set -f # "$data" holds patterns that are not for the shell

# ---- a run
train --out whole $recipe $data --sample-every 10 --prompt "the cat"
check "a run" is_status 0
check "texts" out_has "^texts  *[0-9]* documents, to train on [0-9]* tokens of [0-9.]* kB"
check "a line for each step" out_has "^  *30 .*[0-9]"
check "validation" out_has "^step 30: validation [0-9.]* nats per token, [0-9.]* bits per byte"
check "a sample" out_has "^the cat"
check "the log has a row for each step" lines whole/log.csv 31
check "the report shows itself" grep -q "<svg\|createElementNS" whole/report.html
check "the report needs no network" [ "$(grep -c 'src=\|href=' whole/report.html)" -eq 0 ]
check "the newest two checkpoints" [ "$(ls whole | grep -c '^ckpt-')" -eq 2 ]
check "no unfinished files" no_temps whole
"$bin/generate" --model whole/model.monet --max-tokens 8 --quiet "the cat" > out 2> err
status=$?
check "generate takes the model" out_has "^the cat"
"$bin/generate" --model whole/ckpt-30.monet --max-tokens 8 --quiet "the cat" > out 2> err
status=$?
check "generate takes the checkpoint" out_has "^the cat"
table whole whole.table
recipe_all="$recipe $data --sample-every 10 --quiet"
all() { train --out run $recipe_all --prompt "the cat" "$@"; }

rm -rf run
all --threads 1
check "the same options again" is_status 0
same_end "the same options again" run
train --out run $recipe $data --seed 4
check "a folder with a run" err_has "holds a run already"
check "a folder with a run is status 1" is_status 1
train --out run $recipe $data --force --stop-after 2 --seed 4
check "--force" is_status 0
check "--force removes the old run" [ "$(ls run | grep -c '^ckpt-30')" -eq 0 ]
check "another seed, another model" differ run/model.monet whole/model.monet

# ---- stop and resume
stops="1 10 29"
if [ "$2" = long ]; then stops=$(seq 1 29); fi
for stop in $stops; do
    rm -rf run
    all --threads $((stop % 3 + 1)) --stop-after "$stop"
    check "--stop-after $stop" test -f "run/ckpt-$stop.monet"
    train --resume run --quiet --threads $(((stop + 1) % 3 + 1))
    same_end "stop after $stop" run
done
rm run/tokens.bin
train --resume run
check "resuming a run that is done" is_status 0
same_end "resuming a run that is done" run
train --resume run --steps 40 --quiet
check "--steps goes on" test -f run/ckpt-40.monet
train --resume run --steps 20
check "--steps cannot go back" err_has "step 40 already"
train --resume run --lr 1
check "--resume keeps the options" err_has "lr cannot be given"
train --resume none
check "--resume of nothing" err_has "none: "
mkdir empty
train --resume empty
check "--resume of an empty folder" err_has "no checkpoint"
check "--resume of an empty folder is status 1" is_status 1

# A damaged checkpoint is passed over, and so is one that is cut off.
rm -rf run
all --stop-after 20
cp run/ckpt-20.monet run/ckpt-21.monet
printf 'x' | dd of=run/ckpt-21.monet bs=1 seek=30000 conv=notrunc 2> dd
head -c 1000 run/ckpt-20.monet > run/ckpt-22.monet
touch run/ckpt-23.txt run/ckpt-x.monet
dead=$(sh -c 'echo $$')
touch "run/ckpt-9.monet.tmp.$dead.0" "run/model.monet.tmp.$$.0"
cp run/log.csv log.20
echo "21,cut off" >> run/log.csv
train --resume run --quiet
check "damaged checkpoints are skipped" is_status 0
check "... and named" out_has "^skipped .*ckpt-21.monet"
check "... both of them" out_has "^skipped .*ckpt-22.monet"
check "... and kept under another name" test -f run/ckpt-21.monet.damaged
check "unfinished files of dead processes go" none "run/ckpt-9.monet.tmp.$dead.0"
check "... those of living ones stay" test -f "run/model.monet.tmp.$$.0"
same_end "damaged checkpoints" run

# ---- signals
endless="$recipe $data --quiet --steps 100000000"
signals="INT:130 TERM:143 HUP:129"
[ -z "$(sh -c 'kill -HUP $$; echo ignored')" ] || signals="INT:130 TERM:143" # under nohup
for signal in $signals; do
    rm -rf run
    train_until 3 --out run $endless
    "$bin/train" --resume run > out2 2> err2
    check "one process at a time" grep -q "another process ($pid)" err2
    kill -"${signal%:*}" "$pid"
    end_of "$pid"
    check "SIG${signal%:*}" is_status "${signal#*:}"
    check "SIG${signal%:*}: how to go on" out_has "to go on: .*--resume run"
    rows=$(wc -l < run/log.csv)
    check "SIG${signal%:*}: saved" test -f "run/ckpt-$((rows - 1)).monet"
done
train_until $((rows + 2)) --resume run
kill -INT "$pid"
kill -TERM "$pid"
end_of "$pid"
check "a second signal" [ "$status" -eq 130 -o "$status" -eq 143 ]

"$bin/train" --out pipe $recipe $data 2> err | head -n 1 > out
check "| head does not stop it" test -f pipe/ckpt-30.monet
if [ -c /dev/full ]; then
    "$bin/train" --out full $recipe $data > /dev/full 2> err
    status=$?
    check "> /dev/full does not stop it" is_status 0
    check "> /dev/full is told" err_has "training goes on"
fi

# ---- saving fails: a limit of file sizes is a full disk; a folder that is away, a lost one
rm -rf run
(ulimit -f 80; all; exit $status)
status=$?
check "no room for a checkpoint at the start" is_status 1
check "no room: says so" err_has "ckpt-0.monet.*File too large"
check "no room: leaves nothing behind" none run
all --stop-after 10
cp run/ckpt-10.monet kept.monet
(ulimit -f 80; train --resume run --checkpoint-minutes 0; exit $status)
status=$?
check "no room later is status 1" is_status 1
check "no room later: training goes on" out_has "step 11: no checkpoint.*training goes on"
check "no room later: to the end" err_has "no checkpoint of the last step: .*ckpt-30.monet"
check "no room later: the checkpoint is intact" same run/ckpt-10.monet kept.monet
check "no room later: no unfinished files" no_temps run
train --resume run --quiet
same_end "room again" run

rm -rf run away
train_until 3 --out run $endless --checkpoint-minutes 0
mv run away
sleep 0.3
mv away run
check "a lost folder: training goes on" out_has "no checkpoint: .*training goes on"
rows=$(wc -l < run/log.csv)
tries=0
while [ "$(wc -l < run/log.csv)" -lt $((rows + 5)) ] && [ $tries -lt 200 ]; do
    sleep 0.05
    tries=$((tries + 1))
done
kill -INT "$pid"
end_of "$pid"
check "a lost folder that came back" is_status 130
if [ "$(id -u)" -ne 0 ]; then
    chmod a-w run
    train --resume run --stop-after $((rows + 1000)) --checkpoint-minutes 0
    check "a read-only folder is status 1" is_status 1
    check "a read-only folder: training goes on" out_has "training goes on"
    chmod u+w run
else
    echo "note: not tested: a read-only folder (for root none is)"
fi

# ---- kill -9 at random times
rm -rf run
all --checkpoint-minutes 0
mv run often
saving=0
other=0
wanted=3
if [ "$2" = long ]; then wanted=50; fi
slow="$recipe_all --steps 30 --checkpoint-minutes 0"
tries=0
while [ $saving -lt $wanted ] || [ $other -lt $wanted ]; do
    tries=$((tries + 1))
    [ $tries -gt $((wanted * 20)) ] && break
    steps=$(ls run 2> /dev/null | sed -n 's/^ckpt-\([0-9]*\).monet$/\1/p' | sort -n | tail -n 1)
    if [ "${steps:-30}" -eq 30 ]; then
        if [ -n "$steps" ]; then
            train --resume run --quiet
            same_end "after kills" run often
        fi
        rm -rf run
        set -- --out run $slow --prompt "the cat"
    else
        set -- --resume run --checkpoint-minutes 0
    fi
    "$bin/train" "$@" > out 2> err < /dev/null &
    pid=$!
    sleep "$(awk -v seed="$tries$$" 'BEGIN { srand(seed); print 0.01 + 0.12 * rand() }')"
    kill -9 "$pid" 2> /dev/null
    end_of "$pid"
    [ "$status" -eq 137 ] || continue
    if no_temps run; then other=$((other + 1)); else saving=$((saving + 1)); fi
done
check "kill -9 $saving times while saving, $other times elsewhere" \
    [ $((saving < other ? saving : other)) -ge $wanted ]
if ls run | grep -q "^ckpt-[0-9]*.monet$"; then
    train --resume run --quiet
    same_end "after the last kill" run often
fi
check "after the last kill: no unfinished files" no_temps run

# ---- conversations
awk 'BEGIN {
    for (i = 0; i < 40; i++) {
        c = 97 + i % 26
        printf "{\"prompt\": \"say %c\", \"response\": \"%c%c\\n\"}\n", c, c, c - 32
    }
}' > chat.jsonl
train --out chat --from whole/model.monet --chat chat.jsonl --freeze-routers --steps 5 --batch 2 \
    --valid-fraction 0.3
check "--chat" is_status 0
check "--chat: documents" out_has "^texts  *40 documents"
check "--chat: validation" out_has "^step 5: validation"
"$bin/generate" --model chat/model.monet --chat --max-tokens 4 --quiet "say x" > out 2> err \
    < /dev/null
status=$?
check "--chat: generate --chat takes the model" is_status 0
echo '{"prompt": "x"}' > bad.jsonl
refused "a conversation without response" 1 'bad.jsonl: .*"response" is missing' \
    --from whole/model.monet --chat bad.jsonl --steps 5
echo '{"prompt": "x", "response": ' > bad.jsonl
refused "a broken conversation" 1 'bad.jsonl' --from whole/model.monet --chat bad.jsonl --steps 5

# ---- time, rates, tokenizers
train --out minutes $shape --minutes 0.02 --warmup 8 --batch 2 $data
check "--minutes" is_status 0
check "--minutes: says how many steps" out_has "repeats this run"
steps=$(sed -n 's/.*--steps \([0-9]*\) repeats this run.*/\1/p' out)
train --out steps $shape --steps "${steps:-1}" --warmup 8 --batch 2 $data
check "--minutes: and they repeat it" same minutes/model.monet steps/model.monet
train --out high $recipe $data --lr 1000 --clip 0 --warmup 0 --steps 2000 --uniformity 1000
check "a rate far too high is status 1" is_status 1
check "a rate far too high: steps are skipped" out_has "^step 50: .*not finite: skipped"
check "a rate far too high: gives up" err_has "50 steps in a row were not finite"
check "a rate far too high: in the log" grep -q ",1,,," high/log.csv
train --out from $recipe texts/a.train.txt --from whole/model.monet --force --save-dtype f32
check "--from" is_status 0
train --out tokens $shape texts/a.train.txt --tokenizer whole/model.monet --steps 2
check "--tokenizer of a .monet" is_status 0

# ---- what goes wrong
refused "no text" 1 "nothing to train on" $recipe
refused "a missing file" 1 "none.txt: " $recipe none.txt
: > nothing.txt
refused "an empty text" 1 "have 0 tokens" $recipe nothing.txt
echo hi > short.txt
refused "a short text" 1 "have 5 tokens, a sequence needs 33" $recipe short.txt
refused "a folder without such files" 1 "no file to train on" $recipe texts --train-match '*.md'
refused "a short validation" 1 "for validation have 5 tokens" $recipe $data --valid short.txt \
    --valid-match x
refused "learning what is tested" 1 "for training and for validation" $recipe texts/a.train.txt \
    --valid texts/a.train.txt
refused "texts and conversations" 1 "texts or on conversations" $recipe $data --chat chat.jsonl
refused "no end" 1 "how long" $shape $data
refused "no shape" 1 "--dim is missing" --steps 5 $data
refused "a shape that cannot be" 1 "heads" $recipe $data --heads 3
refused "another shape" 1 "dim is 32, but .*model.monet has 16" $recipe $data --dim 32 \
    --from whole/model.monet
refused "a model that is none" 1 "short.txt" $recipe $data --from short.txt
refused "a tokenizer that is none" 1 "short.txt" $recipe $data --tokenizer short.txt
refused "two tokenizers" 1 "brings its own" $recipe $data --from whole/model.monet \
    --tokenizer whole/model.monet
refused "a sequence that is too long" 1 "longer than the context of 32" $recipe $data --seq 33
refused "names of no tensor" 1 "no tensor matches 'x\*'" $recipe $data --freeze 'x*'
refused "too large for the machine" 1 "of memory" --preset 4.1b --dim 98304 $data
refused "an unknown option" 2 "'--nonsense'" $recipe $data --nonsense
refused "an unknown short option" 2 "'-x'" $recipe $data -x
refused "an unknown preset" 2 "'micro'" --preset micro $data
refused "a rate that is no number" 2 "'nan' is not a number" $recipe $data --lr nan
refused "a negative rate" 2 "'-1' is not a number" $recipe $data --lr -1
refused "half a step" 2 "'1.5' is not a whole number" $recipe $data --steps 1.5
refused "no value" 2 "needs a value" $data --steps
refused "a value for a flag" 2 "takes no value" $recipe $data --tie=1
refused "an unknown schedule" 2 "'linear' is not one of cosine|constant" $recipe $data \
    --schedule linear
train --help
check "--help" out_has "^ \*--threads N"
check "--help is no error" is_status 0
train --out short.txt $recipe $data
check "a folder that is a file" err_has "short.txt"

rm -f whole/tokens.bin
touch texts/a.train.txt
train --resume whole --steps 50
check "texts that were changed" err_has "not those of the run"

echo "train: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
