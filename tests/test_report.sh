#!/bin/sh
# Tests `explore report`: the file by itself, and in a browser if Chromium and node are there.
# sh tests/test_report.sh FOLDER MODEL.monet [PICTURES]     FOLDER holds the built explore
#
# With a third argument, a folder, the browser leaves pictures of the page there.

bin=$1
model=$2
if [ ! -x "$bin/explore" ] || [ ! -r "$model" ]; then
    echo "usage: sh tests/test_report.sh FOLDER_WITH_explore MODEL.monet [PICTURES]" >&2
    exit 2
fi
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
suite=test_report
. "$(dirname "$0")/check.sh"

# Leaves status, $tmp/out and $tmp/err.
explore() {
    "$bin/explore" "$@" > "$tmp/out" 2> "$tmp/err" < /dev/null
    status=$?
}

size() { wc -c < "$1"; }
smaller() { [ "$(size "$1")" -lt "$2" ]; }
occurs() { [ "$(grep -o -e "$1" "$2" | wc -l)" -eq "$3" ]; }
absent() { ! grep -q -E -e "$1" "$2"; }
missing() { [ ! -e "$1" ]; }

# ---- made-up texts, with all that could break a page

hostile='</script><img src=x onerror=window.hit=1>'
mkdir "$tmp/texts"
awk 'BEGIN { for (k = 1; k < 130; k++) {
    print "The price of bread rose to " k " pence, so the cook made a soup of salt, milk and oil.";
    print "Guest " k * 7 " asked for more butter; the price of butter was low in spring.\n\f"
} }' > "$tmp/texts/cooking.txt"
awk 'BEGIN { for (k = 1; k < 130; k++)
    print "int f" k "(int x)\n{\n    return x * " k " + printf(\"%d\\n\", x);\n}\n"
}' > "$tmp/texts/code.txt"
printf 'caf\303\251 \377\376\200 \342\200\250 \001 <!-- %s --> & "quotes" \\u0041\n' \
    "$hostile" >> "$tmp/texts/code.txt"
awk -v h="$hostile" 'BEGIN { for (k = 0; k < 24; k++)
    printf "{\"label\":\"%s\",\"score\":%d,\"text\":\"%s <!--%d %s the price is high\"}\n",
        h, k % 3, h, k, k % 3 ? "alert(1)" : "kind words" }' > "$tmp/texts/page.jsonl"
text="The price of bread is low. $hostile"

explore stats "$model" "$tmp/texts" --max-windows 24 --quiet --out "$tmp/s"
check "statistics" is_status 0

# ---- the file

explore report "$model" "$tmp/s" --out "$tmp/report.html" --text "$text" \
    --title "Report </title><script>window.hit=1</script>"
check "a report" is_status 0
check "it is under 20 MB" smaller "$tmp/report.html" 20000000
check "no address of another machine" absent '(http|https|ftp|ws|wss)://' "$tmp/report.html"
check "nothing is loaded" absent '<link|<img|<iframe|@import|url\(|import\(|fetch\(' \
    "$tmp/report.html"
check "no eval" absent 'eval\(|new Function|innerHTML|document\.write' "$tmp/report.html"
check "two scripts begin" occurs '<script' "$tmp/report.html" 2
check "two scripts end" occurs '</script' "$tmp/report.html" 2
check "no comment begins" absent '<!--' "$tmp/report.html"
check "all of it is UTF-8" iconv -f UTF-8 -t UTF-8 -o "$tmp/utf8" "$tmp/report.html"

explore report "$model" "$tmp/s" --text "$text" \
    --title "Report </title><script>window.hit=1</script>"
check "without --out it goes to the standard output" same "$tmp/out" "$tmp/report.html"
printf '%s' "$text" > "$tmp/text"
explore report "$model" "$tmp/s" --text "$tmp/text" --out "$tmp/other.html" \
    --title "Report </title><script>window.hit=1</script>"
check "the text of a file" same "$tmp/other.html" "$tmp/report.html"
explore report "$model" "$tmp/s" --text "" --out "$tmp/other.html"
check "no text" grep -q '^"text":null' "$tmp/other.html"
explore report "$model" "$tmp/s" --experts 3 --out "$tmp/few.html"
check "--experts" is_status 0
check "fewer cards, fewer bytes" smaller "$tmp/few.html" "$(($(size "$tmp/report.html") / 3))"
explore report "$model" "$tmp/s" --max-bytes 250000 --out "$tmp/small.html"
check "--max-bytes" is_status 0
check "it is kept" smaller "$tmp/small.html" 250001
check "what was left out is said" grep -q 'more bytes than --max-bytes leaves' "$tmp/small.html"
explore report "$model" "$tmp/s" --max-bytes 65536 --out "$tmp/tiny.html"
check "too few bytes are refused" err_has "explore report: --max-bytes: .* take [0-9]* bytes"
check "that is status 1" is_status 1
check "no file then" missing "$tmp/tiny.html"
explore report "$model" "$tmp/nothing" --out "$tmp/tiny.html"
check "no statistics is status 1" is_status 1
explore report --help
check "--help" out_has "^  --max-bytes N"

# ---- in a browser: the page against what the other subcommands say

browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
if [ -z "$browser" ] || ! command -v node > /dev/null; then
    echo "$suite: NOT TESTED IN A BROWSER: no chromium or no node here"
else
    printf '%s' "Report </title><script>window.hit=1</script>" > "$tmp/title"
    "$bin/explore" tokens "$model" "$text" --jsonl --top 1 > "$tmp/tokens.jsonl"
    "$bin/explore" domains "$model" "$tmp/s" --jsonl "$tmp/domains.jsonl" > "$tmp/out"
    "$bin/explore" expert "$model" "$tmp/s" G1:E1304 --jsonl > "$tmp/expert.jsonl"
    node "$(dirname "$0")/report.mjs" "$browser" "$tmp/report.html" "$tmp" $3 > "$tmp/driven" 2>&1
    grep -v 'passed, .* failed' "$tmp/driven"
    good=$(sed -n 's/^report.mjs: \([0-9]*\) passed, .*/\1/p' "$tmp/driven")
    bad=$(sed -n 's/^report.mjs: .* passed, \([0-9]*\) failed/\1/p' "$tmp/driven")
    passed=$((passed + ${good:-0}))
    failed=$((failed + ${bad:-1}))
fi

echo "$suite: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
