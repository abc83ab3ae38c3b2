# Read by the tests of programs, which set suite and tmp, and leave status, $tmp/out and $tmp/err.
passed=0
failed=0

# check NAME CONDITION...: the condition is a command
check() {
    what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "$suite: FAILED: $what"
        echo "  status $status, stdout: $(tail -n 8 "$tmp/out" | head -c 600)"
        echo "  stderr: $(head -c 300 "$tmp/err")"
    fi
}

out_has() { grep -q -e "$1" "$tmp/out"; }
err_has() { grep -q -e "$1" "$tmp/err"; }
is_status() { [ "$status" -eq "$1" ]; }
same() { cmp -s "$1" "$2"; }
differ() { ! cmp -s "$1" "$2"; }
lines() { [ "$(wc -l < "$1")" -eq "$2" ]; }
