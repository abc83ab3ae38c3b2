#!/bin/sh
# Tests the edits of tools/check.c: arrays and edits that are missing, --dump, wrong EXPECTED.json.
# sh tests/test_check.sh FOLDER MODEL.monet     FOLDER holds the built check and convert

bin=$1
if [ ! -x "$bin/check" ] || [ ! -x "$bin/convert" ]; then
    echo "usage: sh tests/test_check.sh FOLDER_WITH_check_convert MODEL.monet" >&2
    exit 2
fi
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
suite=test_check
. "$(dirname "$0")/check.sh"

golden=$(dirname "$0")/golden/vd-base # N = 16, two routers
expected=$golden/expected.safetensors
"$bin/convert" "$golden" "$tmp/m.monet" > "$tmp/out" 2> "$tmp/err"
status=$?
check "convert" is_status 0

run_check() {
    "$bin/check" "$tmp/m.monet" "$@" > "$tmp/out" 2> "$tmp/err" < /dev/null
    status=$?
}

json() { printf '%s\n' "$1" > "$tmp/e.json"; }

# refuse WHAT JSON WORDS: the message has these words, in order
refuse() {
    json "$2"
    run_check "$tmp/dump.safetensors" "$tmp/e.json"
    check "$1: status 2" is_status 2
    check "$1" err_has "e.json: $3"
    check "$1: one line" lines "$tmp/err" 1
}

# ---- arrays and edits that are there or not

run_check "$expected"
check "no EXPECTED.json" is_status 0
check "no EXPECTED.json: each array is named" out_has "^edit.steer.logits .*: not checked"
json '{}'
run_check "$expected" "$tmp/e.json"
check "EXPECTED.json without edits" out_has "^edit.force.logits .*: not checked"
json '{"edits": {}}'
run_check "$expected" "$tmp/e.json"
check "no edit for an array" err_has "array edit.force.logits is there, but .* no such edit"
check "no edit for an array: status 2" is_status 2
json '{"edits": {"other": {}}}'
run_check "$expected" "$tmp/e.json"
check "an edit without an array" err_has "array edit.other.logits is not in the file"
check "an edit without an array: status 2" is_status 2

# ---- dump

json '{"edits": {
    "all": {"0": {"scale": {"17": 2.5, "18": -1}}, "1": {"force": {"3": 0.5, "255": -0.25}}},
    "both": {"1": {"force": {"7": 0.125}, "scale": {"7": 0}}},
    "a.b \u00e9 \"c\"": {"0": {"scale": {"0": 1}, "force": {}}, "1": {}}}}'
run_check "$golden/expected.safetensors" "$tmp/e.json" --dump "$tmp/dump.safetensors"
check "arrays without their edits stop a dump" err_has "edit.force.logits is there"
run_check "$golden/expected.safetensors" --dump "$tmp/plain.safetensors"
check "a dump without edits" is_status 0
run_check "$tmp/plain.safetensors" "$tmp/e.json"
check "without --dump they are missing" err_has "edit.all.logits is not in the file"
run_check "$tmp/plain.safetensors" "$tmp/e.json" --dump "$tmp/dump.safetensors"
check "a dump of new edits" is_status 0
check "a dump says what it computes" out_has "^edit.both.logits  *not in the file, computed"
run_check "$tmp/dump.safetensors" "$tmp/e.json"
check "a dump passes" is_status 0
check "a dump passes: its edits" [ "$(grep -c '^edit.*0.00e+00.* ok$' "$tmp/out")" -eq 3 ]
run_check "$tmp/dump.safetensors" "$tmp/e.json" --threads 1 --kernels scalar
check "other kernels, one thread" is_status 0
cp "$tmp/e.json" "$tmp/good.json"
sed -e 's/"7": 0.125/"7": 0.126/' "$tmp/good.json" > "$tmp/e.json"
run_check "$tmp/dump.safetensors" "$tmp/e.json"
check "another amount is seen" out_has "^edit.both.logits .*FAIL$"
check "another amount is status 1" is_status 1
sed -e 's/"17": 2.5/"17": 2.4/' "$tmp/good.json" > "$tmp/e.json"
run_check "$tmp/dump.safetensors" "$tmp/e.json"
check "another factor is seen" out_has "^edit.all.logits .*FAIL$"
check "the other edits stay right" [ "$(grep -c '^edit.*FAIL$' "$tmp/out")" -eq 1 ]

# ---- wrong EXPECTED.json

b='"both": {}, "a.b \u00e9 \"c\"": {}'
refuse "edits that are a list" '{"edits": []}' '"edits" is not an object'
refuse "an edit that is a number" "{\"edits\": {\"all\": 1, $b}}" 'edit.all.logits: needs an object'
refuse "a router that is null" "{\"edits\": {\"all\": {\"0\": null}, $b}}" \
    'edit.all.logits: router 0: needs an object'
for router in 2 -1 00 1.0 x '' 99999999999999999999 ' 1'; do
    refuse "router '$router'" "{\"edits\": {\"all\": {\"$router\": {}}, $b}}" \
        "edit.all.logits: \"$router\" is no router, they go from 0 to 1"
done
refuse "an unknown verb" "{\"edits\": {\"all\": {\"1\": {\"steer\": {}}}, $b}}" \
    'edit.all.logits: router 1: "steer" is neither "scale" nor "force"'
refuse "a list of experts" "{\"edits\": {\"all\": {\"1\": {\"scale\": [3]}}, $b}}" \
    '.*router 1: "scale" is not an object'
for id in 256 -1 07 1e1 G1 4294967296 18446744073709551617; do
    refuse "expert '$id'" "{\"edits\": {\"all\": {\"1\": {\"force\": {\"$id\": 1}}}, $b}}" \
        ".*router 1: \"$id\" is no expert, they go from 0 to 255"
done
for number in 1e39 -3.5e38 1e400 '"1"' null '[1]'; do
    refuse "factor $number" "{\"edits\": {\"all\": {\"1\": {\"scale\": {\"9\": $number}}}, $b}}" \
        '.*router 1: expert 9: its factor is .*, needs a number that fits f32'
done
refuse "an amount that is no JSON" "{\"edits\": {\"all\": {\"1\": {\"force\": {\"9\": NaN}}}}}" '.*'
refuse "an expert twice" \
    "{\"edits\": {\"all\": {\"1\": {\"force\": {\"9\": 1, \"9\": 2}}}, $b}}" '.*9'
refuse "a name with byte 0" "{\"edits\": {\"x\\u0000y\": {}, $b}}" '.*has a byte 0x00'
json "{\"edits\": {\"all\": {\"1\": {\"scale\": {\"9\": 3e38, \"8\": -3e38}}, \
    \"0\": {\"force\": {\"255\": 3e38}}}, $b}}"
run_check "$tmp/dump.safetensors" "$tmp/e.json"
check "numbers that overflow" err_has "edit.all.logits: tokens: "
check "numbers that overflow: status 2" is_status 2

echo "test_check: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
