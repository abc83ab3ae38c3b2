#!/bin/sh
# Measures monet.h and its peers in turn on this machine and prints the ratios.
#
#     sh tools/compare_peers.sh                    Monet 1.4B, vertical; 10 GB of disk, 12 of memory
#     sh tools/compare_peers.sh --size small       a few minutes
#     LLAMA_BENCH=/path/to/llama-bench LLAMA_MODEL=dense.gguf sh tools/compare_peers.sh
#
# The peer is Monet in PyTorch (tools/torch_peer.py), for any python3 that has torch. llama-bench is
# that of llama.cpp with a dense model of the same size. Peers that are not there are left out.
# All weights are random. Every round runs each program once; the best of the rounds counts.
set -u
export LC_ALL=C

usage() {
    cat << END
usage: sh tools/compare_peers.sh [options]
  --size NAME        1.4B, 850M or small (default: 1.4B)
  --decompose KIND   vd or hd (default: vd)
  --dtypes LIST      of bf16 and fp32 (default: bf16,fp32)
  --tasks LIST       of infer and train (default: infer,train); training is that of 'small'
  --rounds N         (default: 2)
  --threads N        (default: 2)
  --bench FILE       a built bench (default: builds tools/bench.c)
  --models FOLDER    keeps the random models there for the next time (default: a temporary folder)
environment: PYTHON, a python3 with torch; LLAMA_BENCH and LLAMA_MODEL; CC; TMPDIR
END
}

die() {
    echo "compare_peers: $*" >&2
    exit 2
}

note() { echo "note: $*"; }

# ---- options

size=1.4B decompose=vd dtypes=bf16,fp32 tasks=infer,train rounds=2 threads=2 bench='' models=''
while [ $# -gt 0 ]; do
    case $1 in
    --help) usage; exit 0 ;;
    --size | --decompose | --dtypes | --tasks | --rounds | --threads | --bench | --models)
        [ $# -ge 2 ] || die "$1 needs a value"
        eval "${1#--}=\$2"
        shift 2 ;;
    *) die "unknown option '$1' (--help lists them)" ;;
    esac
done
case $size in 1.4B | 850M | small) ;; *) die "--size: '$size' is not 1.4B, 850M or small" ;; esac
case $decompose in vd | hd) ;; *) die "--decompose: '$decompose' is not vd or hd" ;; esac
for word in $(echo "$dtypes" | tr , ' '); do
    case $word in bf16 | fp32) ;; *) die "--dtypes: '$word' is not bf16 or fp32" ;; esac
done
for word in $(echo "$tasks" | tr , ' '); do
    case $word in infer | train) ;; *) die "--tasks: '$word' is not infer or train" ;; esac
done
case $rounds in '' | *[!0-9]* | 0*) die "--rounds: '$rounds' is not a number" ;; esac
case $threads in '' | *[!0-9]* | 0*) die "--threads: '$threads' is not a number" ;; esac

here=$(cd "$(dirname "$0")/.." && pwd) || exit 2
tmp=$(mktemp -d "${TMPDIR:-/tmp}/monet-peers.XXXXXX") || exit 2
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
if [ -n "$models" ]; then mkdir -p "$models" || exit 2; else models=$tmp; fi
results=$tmp/results.csv # who,dtype,task,value
: > "$results"

# ---- programs

if [ -z "$bench" ]; then
    bench=$tmp/bench
    ${CC:-cc} -O2 -pthread -I"$here" "$here/tools/bench.c" -o "$bench" -lm || die "no bench"
fi
[ -x "$bench" ] || die "--bench: '$bench' is not a program"

python=''
for word in ${PYTHON:-python3 /usr/bin/python3}; do
    if "$word" -c 'import torch' > /dev/null 2>&1; then
        python=$word
        break
    fi
done
llama=${LLAMA_BENCH:-}
[ -n "$python" ] ||
    note "no python3 with torch (Debian: apt-get install python3-torch libopenblas0-pthread)"
if [ -n "$llama" ] && [ ! -x "$llama" ]; then
    note "LLAMA_BENCH: '$llama' is not a program, left out"
    llama=''
elif [ -n "$llama" ] && [ ! -r "${LLAMA_MODEL:-}" ]; then
    note "LLAMA_MODEL: '${LLAMA_MODEL:-}' cannot be read, llama-bench is left out"
    llama=''
elif [ -z "$llama" ]; then
    note "no LLAMA_BENCH: llama.cpp is left out"
fi

# A peer must run as its users have it: these two are set to test OpenBLAS, and slow it down.
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
export OMP_NUM_THREADS="$threads"

# Debian's torch calls whatever BLAS is installed; the reference one is ten times slower.
blas=libblas.so.3-$(uname -m)-linux-gnu
if [ -n "$python" ] && command -v update-alternatives > /dev/null &&
    link=$(update-alternatives --display "$blas" 2> /dev/null | grep 'currently points'); then
    echo "BLAS: ${link##* }"
    case $link in
    */blas/libblas.so.3)
        note "that is the reference BLAS: PyTorch is handicapped if it uses it" \
            "(apt-get install libopenblas0-pthread)" ;;
    esac
fi
[ -z "$python" ] || "$python" -c 'import sys, torch; print("PyTorch", torch.__version__)'

# ---- runs: each appends who,dtype,task,value

run_torch() { # infer|train SIZE DTYPE
    [ -n "$python" ] || return 0
    echo "round $round: PyTorch $1 $2 $decompose $3" >&2
    if ! "$python" "$here/tools/torch_peer.py" "$1" "$2" "$decompose" "$3" "$threads" \
        > "$tmp/torch" 2> "$tmp/error"; then
        note "PyTorch $1 $2 $3 failed: $(tail -n 1 "$tmp/error")"
        return 0
    fi
    awk -F, -v OFS=, '$1 == "torch" {
        print "torch", $4, $5 ($5 == "prompt" ? " " $6 : ""), $7
        if ($5 == "decode") print "torch", $4, "resident", $9
    }' "$tmp/torch" >> "$results"
}

# The name of bench for a type, and the file of such a model.
short() { [ "$1" = fp32 ] && echo f32 || echo "$1"; }
model() { echo "$models/monet-$size-$decompose-$(short "$1").monet"; }

run_bench() { # DTYPE OPTIONS...: speeds of both modes, memory
    dtype=$1
    shift
    echo "round $round: bench $*" >&2
    if ! "$bench" --threads "$threads" --repeats 1 --csv "$tmp/bench.csv" "$@" \
        > "$tmp/table" 2> "$tmp/error"; then
        note "bench $* failed: $(tail -n 1 "$tmp/error")"
        return 0
    fi
    grep '^limits' "$tmp/table" | sed 's/^/    /' >&2
    awk -F, -v OFS=, -v dtype="$dtype" '
        $11 == "tokens/s" { print $4, dtype, $6 ($6 == "prompt" ? " " $7 : ""), $9 }
        $6 == "resident" { print "fast", dtype, "resident", $9 }' "$tmp/bench.csv" >> "$results"
}

# Writes the columns n_prompt, n_gen, avg_ts of llama-bench, whose quoted cells may hold commas.
run_llama() {
    [ -n "$llama" ] || return 0
    echo "round $round: llama-bench" >&2
    if ! "$llama" -m "$LLAMA_MODEL" -t "$threads" -p 128,512 -n 48 -r 1 -o csv \
        > "$tmp/llama" 2> "$tmp/error"; then
        note "llama-bench failed: $(tail -n 1 "$tmp/error")"
        return 0
    fi
    awk '
        function cells(line, out,    n, i, c, quoted) {
            n = 1
            out[1] = ""
            for (i = 1; i <= length(line); i++) {
                c = substr(line, i, 1)
                if (c == "\"") quoted = !quoted
                else if (c == "," && !quoted) out[++n] = ""
                else out[n] = out[n] c
            }
            return n
        }
        !place["avg_ts"] { n = cells($0, name); for (i = 1; i <= n; i++) place[name[i]] = i; next }
        {
            cells($0, cell)
            prompt = cell[place["n_prompt"]]
            task = prompt > 0 ? "prompt " prompt : "decode"
            print "llama,-," task "," cell[place["avg_ts"]]
        }' "$tmp/llama" >> "$results"
}

# ---- rounds

has() { case ,$1, in *,$2,*) return 0 ;; *) return 1 ;; esac; }

for dtype in bf16 fp32; do
    has "$tasks" infer && has "$dtypes" "$dtype" || continue
    [ -f "$(model "$dtype")" ] && continue
    echo "writing $(model "$dtype")" >&2
    "$bench" --shape "$size" --decompose "$decompose" --dtype "$(short "$dtype")" \
        --write "$(model "$dtype")" || die "the random model could not be written"
done
if [ -r /proc/meminfo ]; then
    free=$(awk '$1 == "MemAvailable:" { print int($2 / 1e6) }' /proc/meminfo)
    [ "$size" = small ] || [ "$free" -ge 14 ] ||
        note "$free GB of memory are free; PyTorch needs about 7 for 1.4B in fp32, bench 7 more"
fi
if [ -r /proc/loadavg ]; then
    echo "load: $(cut -d ' ' -f 1-3 /proc/loadavg)"
    awk '{ exit !($1 > 0.5) }' /proc/loadavg &&
        note "the machine is busy: no figure is worth much, and PyTorch, whose threads wait for" \
            "each other all the time, suffers most"
fi

round=1
start=''
while [ "$round" -le "$rounds" ]; do
    for dtype in bf16 fp32; do
        has "$tasks" infer && has "$dtypes" "$dtype" || continue
        run_torch infer "$size" "$dtype"
        run_bench "$dtype" --mode both --prompt 128,512 --at 8 --decode 48 $start \
            "$(model "$dtype")"
    done
    has "$tasks" infer && run_llama
    if has "$tasks" train; then
        has "$dtypes" fp32 && run_torch train small fp32
        run_bench fp32 --train small --decompose "$decompose"
        has "$dtypes" bf16 && run_torch train small bf16
    fi
    start=--no-start
    round=$((round + 1))
done

# ---- the table

echo
awk -F, -v threads="$threads" '
    function best(who, dtype, task) { return value[who "," dtype "," task] + 0 }
    function cell(x) { return x > 0 ? sprintf("%.1f", x) : "-" }
    function ratio(a, b) { return a > 0 && b > 0 ? sprintf("%.2f", a / b) : "-" }
    function line(dtype, task, exact, fast, torch, llama) {
        if (exact + fast + torch == 0) return
        printf "%-5s %-12s %10s %10s %10s %10s %10s %10s\n", dtype, task, cell(exact), cell(fast),
            cell(torch), ratio(exact, torch), ratio(fast, torch), cell(llama)
    }
    { key = $1 "," $2 "," $3; if ($4 > value[key] + 0) value[key] = $4 }
    END {
        printf "tokens a second, %d threads, best of the rounds\n", threads
        printf "%-5s %-12s %10s %10s %10s %10s %10s %10s\n", "type", "task", "exact", "fast",
            "PyTorch", "exact/PyT.", "fast/PyT.", "llama.cpp"
        n = split("prompt 128,prompt 512,decode", tasks, ",")
        split("bf16,fp32", types, ",")
        for (t = 1; t <= 2; t++)
            for (k = 1; k <= n; k++)
                line(types[t], tasks[k], best("exact", types[t], tasks[k]),
                    best("fast", types[t], tasks[k]), best("torch", types[t], tasks[k]),
                    best("llama", "-", tasks[k]))
        ours = best("f32", "fp32", "training")
        line("fp32", "training", ours, 0, best("torch", "fp32", "training"), 0)
        line("bf16", "training", ours, 0, best("torch", "bf16", "training"), 0)
        for (t = 1; t <= 2; t++)
            line(types[t], "resident GB", 0, best("fast", types[t], "resident") / 1e9,
                best("torch", types[t], "resident") / 1e9, 0)
        print "training of monet.h is f32 in both lines; that of PyTorch in bf16 is autocast."
        floor = best("torch", "fp32", "training")
        if (floor > 0 && floor < 500)
            print "note: PyTorch trains at " cell(floor) " tokens/s in fp32; under 500 on two " \
                "threads it is handicapped (wrong BLAS?) or the machine is busy."
    }' "$results"
