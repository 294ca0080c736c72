#!/bin/sh
# Reports which GPUs this container sees, whether CUDA works on them, and when it ran, as one JSON object in the
# container's termination message (at most 4096 bytes, the kubelet's limit).
#
#   sh -c "$(cat gpu.sh)" gpu HOLD_SECONDS VECTOR_ADD [ARGUMENT...]
#
# HOLD_SECONDS  how long to keep the GPU after the work, so that sharers overlap
# VECTOR_ADD    path of NVIDIA's vectorAdd sample, or - to leave CUDA out; its arguments follow
#
# With LEAST_FREE_MIB in the environment it makes no CUDA context on a GPU of which less memory is free: users' pods share
# it, and the container that comes last finds none.
#
# POSIX sh; needs date, sleep, tr, cut, sed, and nvidia-smi, which the NVIDIA container toolkit puts into the container.
# Exit status: 0 fine, 1 the GPU does not do what it should, 2 the probe itself could not run.
set -u

output=/dev/termination-log
hold=${1:-0}
vector_add=${2:--}
[ $# -lt 2 ] || shift 2
sleeper=

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

# A whole number, or null for what nvidia-smi does not support.
number() {
    value=$(printf '%s' "$1" | tr -d ' ')
    case $value in
    '' | *[!0-9]*) echo null ;;
    *) echo "$value" ;;
    esac
}

# report STATUS [REASON MESSAGE]: write the termination message and leave.
report() {
    error=null
    [ -n "${2:-}" ] && error="{\"reason\":\"$2\",\"message\":\"$(plain "${3:-}" 300)\"}"
    printf '{"schema":"gpu-fleet.io/probe/v1","startedAt":%s,"finishedAt":%s,"driver":"%s","cuda":"%s","gpus":[%s],"vectorAdd":%s,"error":%s}\n' \
        "$started" "$(now)" "$driver" "$cuda" "$gpus" "$vector_add_result" "$error" >"$output"
    exit "$1"
}

interrupted() {
    [ -n "$sleeper" ] && kill "$sleeper" 2>/dev/null
    report 2 Interrupted "the probe was told to stop"
}

started=$(now)
driver=
cuda=
gpus=
vector_add_result=null
scarce=
trap interrupted TERM INT

command -v nvidia-smi >/dev/null 2>&1 ||
    report 1 NoNvidiaSmi "nvidia-smi is not in the container: the NVIDIA runtime did not set it up, or the driver is missing"

if listing=$(nvidia-smi --query-gpu=uuid,name,memory.total,memory.free,driver_version --format=csv,noheader,nounits 2>&1); then
    while IFS=, read -r uuid name total free version; do
        [ -n "$uuid" ] || continue
        gpus="$gpus${gpus:+,}{\"uuid\":\"$(plain "$uuid" 60)\",\"name\":\"$(plain "${name# }" 60)\",\"memoryTotalMiB\":$(number "$total"),\"memoryFreeMiB\":$(number "$free")}"
        driver=$(plain "${version# }" 30)
        left=$(number "$free")
        [ "$left" = null ] || [ "$left" -ge "${LEAST_FREE_MIB:-0}" ] || scarce="$left MiB of GPU $(plain "$uuid" 60)"
    done <<LISTING
$listing
LISTING
else
    report 1 NvidiaSmiFailed "$listing"
fi
[ -n "$gpus" ] || report 1 NoGpuVisible "nvidia-smi lists no GPU"
cuda=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9.]*\).*/\1/p' | cut -c 1-10)

if [ "$vector_add" != - ]; then
    [ -z "$scarce" ] ||
        report 1 LittleMemoryFree "$scarce are free, and the CUDA contexts of this probe may take $LEAST_FREE_MIB MiB: none was made"
    [ -x "$vector_add" ] || report 2 NoVectorAdd "$vector_add is not in the image"
    before=$(now)
    text=$("$vector_add" "$@" 2>&1)
    status=$?
    took=$(($(now) - before))
    passed=false
    case $text in
    *"Test PASSED"*) [ "$status" -eq 0 ] && passed=true ;;
    esac
    vector_add_result="{\"passed\":$passed,\"milliseconds\":$took,\"exitCode\":$status,\"output\":\"$(plain "$text" 300)\"}"
    [ "$passed" = true ] || report 1 VectorAddFailed "vectorAdd ended with status $status: $text"
fi

if [ "$hold" -gt 0 ] 2>/dev/null; then
    sleep "$hold" &
    sleeper=$!
    wait "$sleeper"
    sleeper=
fi
report 0
