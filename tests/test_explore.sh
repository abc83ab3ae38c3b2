#!/bin/sh
# Tests tools/explore: tokens, stats, expert, find, explain; streams, exit codes, signals.
# sh tests/test_explore.sh FOLDER MODEL.monet     FOLDER holds the built explore

bin=$1
model=$2
if [ ! -x "$bin/explore" ] || [ ! -r "$model" ]; then
    echo "usage: sh tests/test_explore.sh FOLDER_WITH_explore MODEL.monet" >&2
    exit 2
fi
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
suite=test_explore
. "$(dirname "$0")/check.sh"
unset NO_COLOR

# Leaves status, $tmp/out and $tmp/err.
explore() {
    "$bin/explore" "$@" > "$tmp/out" 2> "$tmp/err" < /dev/null
    status=$?
}

empty() { [ ! -s "$1" ]; }
count() { [ "$(grep -c -e "$1" "$tmp/out")" -eq "$2" ]; }

# A JSON object on every line, as far as python3 is there to say.
is_jsonl() {
    command -v python3 > /dev/null || return 0
    python3 -c 'import json, sys
for line in open(sys.argv[1], encoding="utf-8"): assert type(json.loads(line)) is dict' "$1" \
        2> "$tmp/err"
}

# ---- arguments

explore
check "no subcommand is status 2" is_status 2
explore --help
check "help" out_has "^  tokens "
check "help is no error" is_status 0
explore dissect "$model"
check "an unknown subcommand" err_has "unknown subcommand 'dissect'"
check "an unknown subcommand is status 2" is_status 2
for name in tokens stats expert find explain; do
    explore "$name" --help
    check "$name --help" out_has "^  explore $name "
    check "$name --help is no error" is_status 0
    explore "$name" --frobnicate
    check "$name: an unknown option" err_has "^explore $name: .*'--frobnicate'"
    check "$name: an unknown option is status 2" is_status 2
    explore "$name"
    check "$name without a model" err_has "^explore $name: needs MODEL"
    check "$name without a model is status 2" is_status 2
done

# ---- tokens

text="The price of bread"
explore tokens "$model" "$text"
check "tokens" is_status 0
check "tokens: BOS and five tokens, two groups" count ' G[12]  *[0-9][0-9]* ' 12
check "tokens: which layers" out_has "^G1 = layers 0-3, G2 = layers 4-7"
check "tokens: no colours in a file" [ "$(grep -c "$(printf '\033')" "$tmp/out")" -eq 0 ]
cp "$tmp/out" "$tmp/table"
printf '%s\n' "$text" > "$tmp/text"
explore tokens "$model" --file "$tmp/text" --threads 1
check "tokens: a file" same "$tmp/out" "$tmp/table"
"$bin/explore" tokens "$model" < "$tmp/text" > "$tmp/out" 2> "$tmp/err"
check "tokens: the standard input" same "$tmp/out" "$tmp/table"
explore tokens "$model" "$text" --out "$tmp/written"
check "tokens: --out" same "$tmp/written" "$tmp/table"
check "tokens: --out writes nothing else" empty "$tmp/out"
explore tokens "$model" "$text" --group G2 --top 1
check "tokens: one group, one expert" count '^ *[0-9]*  .* G2 *[0-9]*   E[0-9]* ([0-9]*,[0-9]*)' 6
check "tokens: not the other group" count ' G1  *[0-9]' 0
explore tokens "$model" "$text" --color always
check "tokens: colours if asked for" out_has "$(printf '\033')\[30;48;5;"
NO_COLOR=1 explore tokens "$model" "$text" --color always
check "tokens: --color goes before NO_COLOR" out_has "$(printf '\033')"
explore tokens "$model" "$text" --color sometimes
check "tokens: other colours" err_has "auto, always or never"
explore tokens "$model" "$text" --top 1 --threshold 1e9
check "tokens: none above the threshold" count ' E[0-9]' 0
explore tokens "$model" "$text" --threshold much
check "tokens: a threshold that is no number" err_has "'much' is not a number"
check "tokens: wrong options are status 2" is_status 2

# The strongest expert of " The": the JSON lines, the table and the marked text agree.
explore tokens "$model" "$text" --jsonl --gates --top 2
check "tokens --jsonl" is_jsonl "$tmp/out"
check "tokens --jsonl: a line a token" lines "$tmp/out" 6
check "tokens --jsonl: its fields" out_has '^{"position":1,"token":[0-9]*,"text":" The","groups":'
check "tokens --gates: of four heads" out_has '"g1":\[\(\[\[[^]]*\]\(,\[[^]]*\]\)*\],\)\{3\}\['
best=$(sed -n 's/^{"position":1,.*"groups":\[{"group":1[^{]*{"id":\([0-9]*\),.*/\1/p' "$tmp/out" |
    head -n 1)
score=$(sed -n "s/^{\"position\":1,.*\"id\":$best,\"i\":[0-9]*,\"j\":[0-9]*,\"score\":\([0-9.]*\),\
.*/\1/p" "$tmp/out")
score=$(printf '%.2f' "$score")
check "tokens: the table agrees" grep -q "\" The\" .* G1 .*E$best ([0-9,]*) *$score" "$tmp/table"
explore tokens "$model" "$text" --expert "G1:E$best"
check "tokens --expert" out_has "\[ The|$score\]"
check "tokens --expert: in numbers" out_has "^G1 E$best (i=[0-9]*, j=[0-9]*; layers 0-3): active on"
cp "$tmp/out" "$tmp/marked"
explore tokens "$model" "$text" --expert "G1:$((best / 64)),$((best % 64))"
check "experts by their halves" same "$tmp/out" "$tmp/marked"
explore tokens "$model" "$text" --expert "G1:E$best" --color always
check "tokens --expert: highlighted" out_has "$(printf '\033')\[30;48;5;202m The"
explore tokens "$model" "$text" --expert "G1:E$best" --jsonl
check "tokens --expert --jsonl" out_has '^{"position":1,.*"score":'
for wrong in G3:E1 G1:E4096 G1:64,0 E5 G1 G1:E1x G0:E1; do
    explore tokens "$model" "$text" --expert "$wrong"
    check "no such expert: $wrong" err_has "'$wrong' is no expert"
    check "no such expert is status 1: $wrong" is_status 1
done
explore tokens "$model" "$text" --group G9
check "no such group" err_has "has G1 to G2"

printf 'a \377\t\033[31m "q" \342\202' > "$tmp/bytes"
explore tokens "$model" --file "$tmp/bytes" --jsonl
check "any bytes: JSON" is_jsonl "$tmp/out"
check "any bytes: in hex" out_has '"bytes":"ff"'
explore tokens "$model" --file "$tmp/bytes" --top 1
check "any bytes: the terminal is safe" [ "$(grep -c "$(printf '\033')" "$tmp/out")" -eq 0 ]
explore tokens "$model" ""
check "an empty text is BOS" count '^    0  <s>' 1
awk 'BEGIN { for (k = 0; k < 300; k++) printf "word %d ", k }' > "$tmp/long"
explore tokens "$model" --file "$tmp/long" --context 50 --top 1 --jsonl
check "a text longer than the context" is_status 0
cp "$tmp/out" "$tmp/windows"
explore tokens "$model" --file "$tmp/long" --top 1 --jsonl
head -n 50 "$tmp/out" > "$tmp/first"
head -n 50 "$tmp/windows" | cmp -s - "$tmp/first"
check "windows begin alike" [ $? -eq 0 ]
check "windows are read on their own" differ "$tmp/out" "$tmp/windows"

printf 'monet-edit 1\nname test\nshape N=64 L=8 G=4\nremove G1 E%s\nforce 0.5 G2 E7\n' "$best" \
    > "$tmp/edit"
explore tokens "$model" "$text" --edit "$tmp/edit" --top 2
check "tokens --edit: removed" out_has "\" The\" .*E$best ([0-9,]*) *$score->0.00"
check "tokens --edit: forced" out_has "G2 .*E7 (0,7) *[0-9.]*->0.5"
printf 'monet-edit 1\nname test\nshape N=64 L=8 G=4\nremove L2 E%s\n' "$best" > "$tmp/edit"
explore tokens "$model" "$text" --edit "$tmp/edit" --layer 2 --top 1
check "tokens --layer: the edited one" out_has "\" The\" .*E$best ([0-9,]*) *$score->0.00"
explore tokens "$model" "$text" --edit "$tmp/edit" --layer 1 --top 1
check "tokens --layer: one that is not" out_has "\" The\" .*E$best ([0-9,]*) *$score\$"
explore tokens "$model" "$text" --layer 8
check "tokens: no such layer" err_has "the last layer is 7"
explore tokens "$model" "$text" --edit "$tmp/text"
check "an edit that is none is named" err_has "$tmp/text"
check "an edit that is none is status 1" is_status 1

# Parts of a logit sum up to what is printed.
explore tokens "$model" "$text" --attribute --top 100000 --jsonl
check "tokens --attribute" is_jsonl "$tmp/out"
sums=$(sed -n 's/^{"position":2,.*"logit":\([-0-9.e]*\),"parts":\(.*\)/\1 \2/p' "$tmp/out" |
    sed 's/"logit":/\n/g' | awk 'NR == 1 { total = $1 } NR > 1 { sum += $1 + 0 }
    END { d = sum - total; print (NR > 20 && d < 1e-3 && d > -1e-3) }')
check "the parts of a logit sum up" [ "$sums" = 1 ]
explore tokens "$model" "$text" --attribute
check "tokens --attribute: in words" out_has "next \" price\" .* %: logit .* = embedding .*experts"

explore tokens "$model" one two
check "two texts" is_status 2
explore tokens "$tmp/none.monet" x
check "a missing model is named" err_has "none.monet"
check "a missing model is status 1" is_status 1
explore tokens "$model" --file "$tmp/none.txt"
check "a missing text is named" err_has "none.txt"
check "a missing text is status 1" is_status 1
"$bin/explore" tokens "$model" "$text" 2> "$tmp/err" | head -n 1 > "$tmp/out"
check "| head -n 1" out_has "^G1 = layers"
check "| head -n 1 is quiet" empty "$tmp/err"
if [ -c /dev/full ]; then
    "$bin/explore" tokens "$model" x > /dev/full 2> "$tmp/err"
    status=$?
    check "/dev/full is status 1" is_status 1
    check "/dev/full is told" err_has "cannot write"
fi

# ---- stats: texts made here, with two labels and a score

# sentences FILE N WORDS...: N lines, words in an order that is always the same
sentences() {
    to=$1 n=$2
    shift 2
    awk -v n="$n" -v words="$*" 'BEGIN {
        count = split(words, w, " "); x = 7
        for (k = 0; k < n; k++) {
            line = ""
            for (m = 0; m < 9; m++) {
                x = (x * 1103 + 12345) % 65536
                line = line w[x % count + 1] " "
            }
            print line "."
        }
    }' > "$to"
}
mkdir -p "$tmp/texts/in"
sentences "$tmp/texts/animals.train.txt" 60 the cat dog horse and bird near water with young
sentences "$tmp/texts/in/money.train.txt" 60 the price of goods and supply market demand rises
sentences "$tmp/texts/money.valid.txt" 5 price
printf '{"text":"%s","label":"rude","score":0.9}\n{"text":"%s","score":0.1}\n' \
    "you fool you fool you fool you fool" "good morning good day" > "$tmp/some.jsonl"

run_stats() { explore stats "$model" "$@" --window 64 --quiet; }
run_stats "$tmp/texts" "$tmp/some.jsonl" --match '*.train.txt' --out "$tmp/all.stats"
check "stats" is_status 0
check "stats --quiet" empty "$tmp/out"
explore stats "$model" "$tmp/all.stats" --summary
check "stats --summary" out_has "^  animals  *[0-9]* tokens"
check "stats: folders are searched" out_has "^  money  *[0-9]* tokens"
check "stats: labels of documents" out_has "^  rude  *[0-9]* tokens"
check "stats: documents without a label" out_has "^  some  *[0-9]* tokens"
check "stats: groups" out_has "^  G2 (layers 4-7): [0-9.]* experts active on a token"
total=$(sed -n 's/^\([0-9]*\) tokens in .*/\1/p' "$tmp/out")
sum=$(awk '/^  [a-z]+ +[0-9]+ tokens/ { n += $2 } END { print n + 0 }' "$tmp/out")
check "stats: tokens of the labels sum up" [ "$total" = "$sum" ]
run_stats "$tmp/texts" "$tmp/some.jsonl" --match '*.train.txt' --out "$tmp/again.stats" --threads 1
check "stats: threads do not change the file" same "$tmp/all.stats" "$tmp/again.stats"

# An interrupted pass goes on to the same bytes. --autosave 0 saves after every window.
sentences "$tmp/long.txt" 250 the cat saw a house and found some old bread on its table
run_stats "$tmp/long.txt" --out "$tmp/whole.stats"
check "stats: the long text" is_status 0
"$bin/explore" stats "$model" "$tmp/long.txt" --window 64 --out "$tmp/part.stats" --autosave 0 \
    > "$tmp/out" 2> "$tmp/err" < /dev/null &
pid=$!
k=0
while [ ! -e "$tmp/part.stats" ] && [ "$k" -lt 100 ]; do
    sleep 0.1 2> /dev/null || sleep 1
    k=$((k + 1))
done
kill -INT "$pid"
wait "$pid"
status=$?
check "stats: Ctrl-C is status 130" is_status 130
check "stats: Ctrl-C says what to do" err_has "part.stats holds [0-9]* windows.*--resume"
explore stats "$model" "$tmp/part.stats" --summary
windows=$(sed -n 's/^[0-9]* tokens in \([0-9]*\) windows.*/\1/p' "$tmp/out")
check "stats: Ctrl-C keeps what was counted" [ "${windows:-0}" -gt 0 ]
check "stats: it was interrupted" differ "$tmp/part.stats" "$tmp/whole.stats"
run_stats "$tmp/long.txt" --out "$tmp/part.stats" --resume --top 3
check "stats: resumed with other options" err_has "made with --top 20"
cp "$tmp/part.stats" "$tmp/copy.stats"
run_stats "$tmp/texts" --out "$tmp/part.stats" --resume
check "stats: resumed with other texts" err_has "part.stats.*other texts"
check "stats: resumed with other texts is status 1" is_status 1
check "stats: a failure leaves the file" same "$tmp/part.stats" "$tmp/copy.stats"
run_stats "$tmp/long.txt" --out "$tmp/part.stats" --resume
check "stats: resumed" is_status 0
check "stats: resumed to the same bytes" same "$tmp/part.stats" "$tmp/whole.stats"
run_stats "$tmp/long.txt" --out "$tmp/part.stats" --resume
check "stats: nothing left to do" same "$tmp/part.stats" "$tmp/whole.stats"
run_stats "$tmp/long.txt" --out "$tmp/new.stats" --resume
check "stats: --resume without a file starts" same "$tmp/new.stats" "$tmp/whole.stats"

# Two parts and the whole say the same of an expert, but for last digits.
run_stats "$tmp/texts/animals.train.txt" --out "$tmp/a.stats"
run_stats "$tmp/texts/in/money.train.txt" --out "$tmp/b.stats"
run_stats "$tmp/texts/animals.train.txt" "$tmp/texts/in/money.train.txt" --out "$tmp/ab.stats"
explore stats "$model" "$tmp/a.stats" "$tmp/b.stats" --merge --out "$tmp/merged.stats" --quiet
check "stats --merge" is_status 0
explore stats "$model" "$tmp/merged.stats" --summary
cp "$tmp/out" "$tmp/merged"
explore stats "$model" "$tmp/ab.stats" --summary
check "merged: the same summary" same "$tmp/out" "$tmp/merged"
for label in animals money; do
    for by in ab merged; do
        explore find "$model" "$tmp/$by.stats" --label "$label" --jsonl
        sed 's/\(\.[0-9][0-9][0-9]\)[0-9]*/\1/g' "$tmp/out" > "$tmp/$by.$label"
    done
    check "merged: the same experts for $label" same "$tmp/ab.$label" "$tmp/merged.$label"
done

run_stats "$tmp/texts" --match '*.none' --out "$tmp/x.stats"
check "stats: no text matches" is_status 1
run_stats "$tmp/none.txt" --out "$tmp/x.stats"
check "stats: a missing text is named" err_has "none.txt"
check "stats: a missing text is status 1" is_status 1
check "stats: nothing is left behind" [ ! -e "$tmp/x.stats" ]
run_stats "$tmp/texts"
check "stats: --out is needed" err_has "out FILE is missing"
check "stats: --out is needed: status 2" is_status 2
run_stats "$tmp/texts" --out "$tmp/no/such/folder.stats"
check "stats: where nothing can be written" is_status 1

# ---- find

explore find "$model" "$tmp/all.stats" --word " price" --top 5
check "find --word" out_has "G[12] E[0-9]* (i=[0-9]*, j=[0-9]*; layers [0-9]-[0-9]).*\" price\""
explore find "$model" "$tmp/all.stats" --word " price" --top 3 --jsonl
check "find --word --jsonl" is_jsonl "$tmp/out"
check "find --word: three of them" lines "$tmp/out" 3
order=$(sed 's/.*"sum":\([0-9.]*\),.*/\1/' "$tmp/out" | awk 'NR > 1 && $1 > last { bad = 1 }
    { last = $1 } END { print (NR == 3 && !bad) }')
check "find --word: the largest sum first" [ "$order" = 1 ]
found=$(sed -n '1s/.*"group":\([0-9]*\),"id":\([0-9]*\),.*/G\1:E\2/p' "$tmp/out")
explore find "$model" "$tmp/all.stats" --word "price" --top 1 --jsonl
check "find --word: without the space" [ "$found" = \
    "$(sed 's/.*"group":\([0-9]*\),"id":\([0-9]*\),.*/G\1:E\2/' "$tmp/out")" ]
explore find "$model" "$tmp/all.stats" --word " pric"
check "find --word: no part of a word" out_has "none"
explore find "$model" "$tmp/all.stats" --word " zebra"
check "find --word: a word that is not there" out_has "none"
check "find --word: none is no error" is_status 0
explore find "$model" "$tmp/all.stats" --label money --top 4 --jsonl --floor 5
check "find --label: by ratio and by correlation" lines "$tmp/out" 8
check "find --label: by ratio" count '^{"by":"ratio"' 4
check "find --label: by correlation" count '^{"by":"r",.*"r":0' 4
explore find "$model" "$tmp/all.stats" --label money --csv --top 2
check "find --label --csv" out_has '^by,group,id,i,j,ratio,r,'
check "find --label --csv: rows" lines "$tmp/out" 5
explore find "$model" "$tmp/all.stats" --label nobody
check "find: an unknown label" err_has "no label 'nobody'"
check "find: an unknown label is status 1" is_status 1
explore find "$model" "$tmp/all.stats" --score --top 3 --floor 1 --jsonl
check "find --score" count '^{"by":"score".*"r":0\.' 3
explore find "$model" "$tmp/a.stats" --score
check "find --score without scores" err_has "have no scores"
explore find "$model" "$tmp/all.stats" --like "demand and supply" --top 3
check "find --like" count 'G[12] E' 3
explore find "$model" "$tmp/all.stats"
check "find: what?" err_has "one of --word"
check "find: what? is status 2" is_status 2
explore find "$model" "$tmp/text" --word x
check "find: statistics that are none are named" err_has "$tmp/text"
check "find: statistics that are none: status 1" is_status 1

# ---- expert

explore expert "$model" "$tmp/all.stats" "$found"
check "expert" is_status 0
check "expert: its name" out_has "^${found%:*} ${found#*:} (i=[0-9]*, j=[0-9]*; layers"
check "expert: how often" out_has "^active  *[0-9.]* % of $total tokens"
check "expert: its halves" out_has "^halves  *i=[0-9]* active .*j=[0-9]* active"
check "expert: its labels" out_has "^labels .*money .*r +"
check "expert: tokens in context" out_has "money .*\[ price\]"
check "expert: what it promotes" count "^  layer [0-9] *promotes   *\"" 4
explore expert "$model" "$tmp/all.stats" "$found" --jsonl
check "expert --jsonl" is_jsonl "$tmp/out"
check "expert --jsonl: one line" lines "$tmp/out" 1
check "expert --jsonl: a token" out_has '"top":\[{"score":[0-9.]*,"token":[0-9]*,"text":'
explore expert "$model" "$tmp/all.stats" "$found" G1:E0 --csv
check "expert --csv" out_has "^${found%:*},\|^[12],${found#*:E},.*,top,1,"
explore expert "$model" "$tmp/all.stats" "$found" --color always
check "expert: colours" out_has "$(printf '\033')\[1;7m price"
explore expert "$model" "$tmp/all.stats" G5:E1
check "expert: no such expert" err_has "'G5:E1' is no expert"
head -c 1000 "$tmp/all.stats" > "$tmp/cut.stats"
explore expert "$model" "$tmp/cut.stats" "$found"
check "expert: damaged statistics are named" err_has "cut.stats"
check "expert: damaged statistics: status 1" is_status 1

# ---- explain

explore explain "$model" "$tmp/all.stats" "$found"
check "explain" is_status 0
check "explain: the question" out_has '^Q: What is the meaning of the word X? A: Sure!'
check "explain: what X is" out_has '^X is the mean of .*" price" [0-9]'
cp "$tmp/out" "$tmp/explained"
explore explain "$model" "$tmp/all.stats" "$found"
check "explain repeats" same "$tmp/out" "$tmp/explained"
explore explain "$model" --word " price" --nearest 1
check "explain --word: nearest is the word" out_has '^nearest tokens (cosine) " price" 1.00$'
explore explain "$model" --word " price" --chat --jsonl --max-tokens 5
check "explain --jsonl" is_jsonl "$tmp/out"
check "explain --chat" out_has '"prompt":"\[INST\] What is'

explore explain "$model" --word " price" --prompt "No place for it"
check "explain: a question without X" err_has "no X that stands alone"
check "explain: a question without X is status 2" is_status 2
explore explain "$model" "$tmp/all.stats"
check "explain: no expert" is_status 2
explore explain "$model" "$tmp/all.stats" "$found" --temperature hot
check "explain: a temperature that is no number" err_has "'hot' is not a number"

echo "test_explore: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
