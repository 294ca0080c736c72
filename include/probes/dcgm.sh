#!/bin/sh
# Runs NVIDIA's DCGM diagnostics on the GPUs that this container sees, and reports as one JSON object in the container's
# termination message (at most 4096 bytes, the kubelet's limit).
#
#   sh -c "$(cat dcgm.sh)" dcgm LEVEL
#
# LEVEL  1 takes seconds, 2 about 2 minutes, 3 about 15 minutes
#
# POSIX sh; needs awk, date, nv-hostengine and dcgmi (the dcgm image), and nvidia-smi, which the NVIDIA container toolkit
# puts into the container. The image has no JSON tool, so the table that dcgmi prints is read: '| test | Pass |'.
# Exit status: 0 the diagnostic ran, whatever its tests found; 1 the GPU does not answer; 2 the diagnostic could not run.
set -u

output=/dev/termination-log
level=${1:-1}
diagnostic=

# Milliseconds since the epoch; whole seconds where date knows no nanoseconds.
now() {
    nanoseconds=$(date +%s%N 2>/dev/null)
    case $nanoseconds in
    '' | *[!0-9]*) nanoseconds=$(date +%s)000000000 ;;
    esac
    echo "${nanoseconds%??????}"
}

# Text that needs no escaping in JSON, cut to $2 characters.
plain() {
    printf '%s' "$1" | tr '\n\t' '  ' | tr -cd 'A-Za-z0-9 ._:,()+/=-' | cut -c "1-$2"
}

# JSON list of the tests whose result begins with $1; a row without a test's name belongs to the test above.
tests() {
    printf '%s\n' "$table" | awk -F '|' -v wanted="$1" '
        NF >= 3 {
            name = $2; result = $3
            gsub(/^ +| +$/, "", name); gsub(/^ +| +$/, "", result); gsub(/[^A-Za-z0-9 _.()-]/, "", name)
            if (name == "" || index(result, wanted) != 1 || seen[name]++ || ++count > 40) next
            printf "%s\"%s\"", (count > 1 ? "," : ""), substr(name, 1, 40)
        }'
}

# report STATUS [REASON MESSAGE]: write the termination message and leave.
report() {
    error=null
    [ -n "${2:-}" ] && error="{\"reason\":\"$2\",\"message\":\"$(plain "${3:-}" 300)\"}"
    printf '{"schema":"gpu-fleet.io/dcgm/v1","startedAt":%s,"finishedAt":%s,"driver":"%s","level":%s,"passed":[%s],"failed":[%s],"warned":[%s],"skipped":[%s],"detail":"%s","error":%s}\n' \
        "$started" "$(now)" "$driver" "$level" "$(tests Pass)" "$(tests Fail)" "$(tests Warn)" "$(tests Skip)" \
        "$(plain "$detail" 600)" "$error" >"$output"
    exit "$1"
}

interrupted() {
    [ -n "$diagnostic" ] && kill "$diagnostic" 2>/dev/null
    report 2 Interrupted "the probe was told to stop"
}

started=$(now)
driver=
table=
detail=
trap interrupted TERM INT

case $level in
1 | 2 | 3 | 4) ;;
*)
    level=1
    report 2 ProbeBroken "the level must be 1, 2, 3 or 4"
    ;;
esac
driver=$(plain "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)" 30)
[ -n "$driver" ] || report 1 NvidiaSmiFailed "nvidia-smi tells no driver version"
command -v dcgmi >/dev/null 2>&1 || report 2 NoDcgm "dcgmi is not in the image"

cd "${TMPDIR:-/tmp}" || report 2 ProbeBroken "there is no folder to write to"
# A daemon that listens on 127.0.0.1:5555 and ends with the container.
nv-hostengine --pid "${TMPDIR:-/tmp}/nv-hostengine.pid" --log-level NONE >hostengine.log 2>&1 ||
    report 2 NoHostEngine "nv-hostengine does not start: $(cat hostengine.log)"
tries=0
until dcgmi discovery -l >discovery.log 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 30 ] || report 2 NoHostEngine "nv-hostengine does not answer: $(cat hostengine.log discovery.log)"
    sleep 1
done

dcgmi diag -r "$level" >diagnostic.log 2>&1 &
diagnostic=$!
wait "$diagnostic"
status=$?
diagnostic=
table=$(cat diagnostic.log)
if [ -n "$(tests Fail)" ]; then
    # The rows below a failed test say why.
    detail=$(printf '%s\n' "$table" | awk -F '|' 'NF >= 3 {
        text = $3; gsub(/ +/, " ", text)
        if (bad && $2 ~ /^ *$|Warning|Error|Info/) printf "%s;", text; else bad = ($3 ~ /^ *Fail/)
    }')
    report 0
fi
[ -n "$(tests Pass)" ] || report 2 DiagnosticFailed "dcgmi diag ended with status $status: $table"
report 0
