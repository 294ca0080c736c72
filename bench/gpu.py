"""Runs the probe programs on a real GPU, as a node's pods would: ``python3 bench/gpu.py FILE [--vector-add PROGRAM]``.

Needs a machine with an NVIDIA GPU and driver, root (to run programs as another user, as pods do), and only the standard
library of Python 3.9, so that it can be copied to any node. Writes only the programs' own termination messages, as one
JSON object ``{scenario: [{message, status, output}]}`` to FILE; ``tests/unit/core/validation/recorded`` has such
recordings, which the tests judge as the package does. It changes no setting of the GPU; the MPS daemon that it starts
for two scenarios is its own, and is stopped with them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROBES = Path(__file__).resolve().parents[1] / "include" / "probes"
#: The user of the probes' pods.
USER = 65532
AS_USER: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []}
#: Seconds for which all sharers compute, and for which the first one does.
TOGETHER, ALONE = 12, 24
#: How far apart sharers start, in seconds: pods do not start at the same moment.
SKEW = 0.5

#: Allocates all the GPU memory that it can get, prints how many MiB, and holds them for the given number of seconds.
HOG = """
import ctypes, sys, time
cuda = ctypes.CDLL("libcuda.so.1")
device, context, block = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuCtxCreate_v2(ctypes.byref(context), 4, device) == 0
size, held = 1 << 32, 0
while size >= 1 << 20:
    while cuda.cuMemAlloc_v2(ctypes.byref(block), ctypes.c_size_t(size)) == 0:
        held += size
    size //= 2
print("held", held >> 20, "MiB", flush=True)
time.sleep(float(sys.argv[1]))
"""


class Bench:
    """One folder for the messages, and the programs that write them."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python = folder, python
        os.chown(folder, USER, USER)
        self.count = 0
        # A container runtime sets the path of the driver; on a bare machine this does.
        self.environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}

    def start(self, program: str, *arguments: str, **environment: str) -> Probe:
        """A probe as its pod starts it: the program's text as an argument, not root, a few variables."""
        self.count += 1
        message = self.folder / f"{self.count}.json"
        text = (PROBES / program).read_text().replace("/dev/termination-log", str(message))
        begin = [self.python, "-c", text] if program.endswith(".py") else ["/bin/sh", "-c", text, "gpu"]
        process = subprocess.Popen(
            [*begin, *arguments],
            env={**self.environment, **environment},
            cwd=self.folder,
            **AS_USER,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Probe(process, message)

    def hog(self, seconds: float, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python, "-c", HOG, str(seconds)],
            env={**self.environment, **environment},
            cwd=self.folder,
            **AS_USER,
            stdout=subprocess.PIPE,
            text=True,
        )

    def sharers(self, count: int, **environment: str) -> list[Probe]:
        """That many throughput probes; the first one continues alone when the others have ended."""
        started = []
        for index in range(count):
            started.append(self.start("throughput.py", str(TOGETHER if index else ALONE), **environment))
            time.sleep(SKEW)
        return started


class Probe:
    def __init__(self, process: subprocess.Popen[str], message: Path) -> None:
        self.process, self.message = process, message

    def result(self) -> dict[str, object]:
        """What the kubelet would see of it."""
        output, _ = self.process.communicate(timeout=180)
        text = self.message.read_text() if self.message.exists() else ""
        return {"message": text, "status": self.process.returncode, "output": output}


def results(probes: list[Probe]) -> list[dict[str, object]]:
    return [probe.result() for probe in probes]


def starved(bench: Bench) -> list[dict[str, object]]:
    """One of four is stopped for 70 % of the time for which all compute."""
    probes = bench.sharers(4)
    victim, until = probes[2].process, time.monotonic() + TOGETHER + 2
    while time.monotonic() < until and victim.poll() is None:
        victim.send_signal(signal.SIGSTOP)
        time.sleep(0.35)
        victim.send_signal(signal.SIGCONT)
        time.sleep(0.15)
    return results(probes)


def memory_full(bench: Bench) -> list[dict[str, object]]:
    """A probe beside a process that holds all memory."""
    with bench.hog(60) as hog:
        assert hog.stdout is not None
        said = hog.stdout.readline()
        try:
            return [bench.start("throughput.py", "5").result(), {"message": "", "status": 0, "output": said}]
        finally:
            hog.kill()


def terminated(bench: Bench) -> list[dict[str, object]]:
    """A probe that is told to stop while it computes."""
    probe = bench.start("throughput.py", "30")
    time.sleep(5)
    probe.process.terminate()
    return [probe.result()]


def mps(bench: Bench, replicas: int, *, limited: bool) -> list[dict[str, object]]:
    """That many clients of an MPS daemon, which limits each to its share, as the device plugin's does, or does not."""
    pipe, log = bench.folder / "mps", bench.folder / "mps-log"
    log.mkdir(exist_ok=True)
    pipe.mkdir(exist_ok=True)
    where = {"CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_LOG_DIRECTORY": str(log)}
    for folder in (pipe, log):
        os.chown(folder, USER, USER)

    def control(*arguments: str, command: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nvidia-cuda-mps-control", *arguments],
            input=command + "\n",
            env={**os.environ, **where},
            cwd=bench.folder,
            **AS_USER,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    # An MPS server serves one user, and the probes are the clients of this one.
    daemon = control("-d")
    if daemon.returncode:
        return [{"message": "", "status": daemon.returncode, "output": f"the MPS daemon: {daemon.stdout}"}]
    said = ""
    try:
        if limited:
            board = subprocess.run(
                ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()[0]
            said += control(command=f"set_default_device_pinned_mem_limit 0 {int(board) // replicas}M").stdout
            said += control(command=f"set_default_active_thread_percentage {100 // replicas}").stdout
        found = results(bench.sharers(replicas, **where))
        with bench.hog(0, **where) as hog:
            said += hog.communicate()[0]
        return [*found, {"message": "", "status": 0, "output": said}]
    finally:
        control(command="quit")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--vector-add", default="-", help="path of NVIDIA's vectorAdd sample")
    parser.add_argument("--python", default="/usr/bin/python3", help="that the probes' user may run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu-fleet-probes-") as folder:
        bench = Bench(Path(folder), options.python)
        scenarios: dict[str, Callable[[], list[dict[str, object]]]] = {
            "gpu-alone": lambda: [bench.start("gpu.sh", "0", options.vector_add).result()],
            "gpu-sharers": lambda: results([bench.start("gpu.sh", "5", options.vector_add) for _ in range(4)]),
            "alone": lambda: [bench.start("throughput.py", "10").result()],
            "sharers-2": lambda: results(bench.sharers(2)),
            "sharers-4": lambda: results(bench.sharers(4)),
            "sharers-8": lambda: results(bench.sharers(8)),
            "starved": lambda: starved(bench),
            "memory-full": lambda: memory_full(bench),
            "no-gpu": lambda: [bench.start("throughput.py", "5", CUDA_VISIBLE_DEVICES="-1").result()],
            "terminated": lambda: terminated(bench),
        }
        if shutil.which("dcgmi"):
            scenarios["dcgm"] = lambda: [bench.start("dcgm.sh", "1").result()]
        if shutil.which("nvidia-cuda-mps-control"):
            scenarios["mps-limited"] = lambda: mps(bench, 4, limited=True)
            scenarios["mps-unlimited"] = lambda: mps(bench, 4, limited=False)
        found = {}
        for name, scenario in scenarios.items():
            began = time.monotonic()
            try:
                found[name] = scenario()
            except Exception as error:  # noqa: BLE001  (the others are worth having)
                found[name] = [{"message": "", "status": -1, "output": f"{type(error).__name__}: {error}"}]
            options.file.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name}: {time.monotonic() - began:.1f} s", *(tell(result) for result in found[name]), sep="\n  ")
    return 0


def tell(result: dict[str, object]) -> str:
    """One line on a probe's result: what it measured, or why not."""
    try:
        report = json.loads(str(result["message"]))
    except ValueError:
        return f"status {result['status']}, no report: {str(result['output'])[-400:]!r}"
    if report["error"]:
        return f"status {result['status']}, {report['error']}"
    if "windows" not in report:
        return f"status {result['status']}, {report['gpus']}, CUDA {report['cuda']}, {report['vectorAdd']}"
    windows, gpu = report["windows"], report["gpu"]
    rate = 2 * sum(windows["counts"]) * report["work"] / (len(windows["counts"]) * windows["width"] * 1e6)
    return (
        f"status {result['status']}, {gpu['name']}, {gpu['multiprocessors']} multiprocessors, "
        f"{gpu['memoryTotalMiB']} of {gpu['boardMemoryMiB']} MiB, {gpu['memoryFreeMiB']} free, "
        f"{sum(windows['counts'])} launches, {rate:.0f} GFLOP/s, "
        f"{len(windows['counts'])} windows of {windows['width']} ms, message of {len(str(result['message']))} bytes"
    )


if __name__ == "__main__":
    sys.exit(main())
