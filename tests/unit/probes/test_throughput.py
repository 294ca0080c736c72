"""The throughput program with a CUDA driver made of Python: what it calls, what it writes, and how it gives up."""

from __future__ import annotations

import array
import ctypes
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.core.specs import REPOSITORY

PROGRAM = REPOSITORY / "include" / "probes" / "throughput.py"
UUID = bytes(range(16))


class Clock:
    """Both of the program's clocks; a launch takes time, nothing else does."""

    def __init__(self) -> None:
        self.seconds = 1_790_000_000.0

    def time(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds - 1_000_000.0


class Driver:
    """``libcuda.so.1`` as far as the program uses it. Arguments arrive as ctypes makes them."""

    def __init__(
        self, clock: Clock, *, batch_s: float = 0.01, fails: str = "", code: int = 999, devices: int = 1
    ) -> None:
        self.clock, self.batch_s, self.fails, self.code, self.devices = clock, batch_s, fails, code, devices
        self.wrong_thread: int | None = None
        self.launches = 0
        self.block_count = 0
        self.ptx = ""

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == self.fails:
                return self.code
            return int(getattr(self, f"on_{name}")(*arguments) or 0)

        return call

    def on_cuInit(self, flags: int) -> None:
        assert flags == 0

    def on_cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = 12080

    def on_cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = self.devices

    def on_cuDeviceGet(self, device: Any, ordinal: int) -> None:
        device._obj.value = ordinal

    def on_cuDeviceGetName(self, buffer: Any, size: int, device: int) -> None:
        buffer.value = b"NVIDIA A10G"

    def on_cuDeviceGetUuid(self, buffer: Any, device: int) -> None:
        buffer.raw = UUID

    def on_cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:
        assert attribute == 16
        value._obj.value = 3

    def on_cuCtxCreate_v2(self, context: Any, flags: int, device: int) -> None:
        assert flags == 4
        context._obj.value = 7

    def on_cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = 22000 * 1024 * 1024, 23028 * 1024 * 1024

    def on_cuModuleLoadData(self, module: Any, image: Any) -> None:
        self.ptx = image.value.decode()
        module._obj.value = 8

    def on_cuModuleGetFunction(self, function: Any, module: Any, name: Any) -> None:
        assert f".entry {name.value.decode()}(" in self.ptx
        function._obj.value = 9

    def on_cuMemAlloc_v2(self, pointer: Any, size: Any) -> None:
        self.memory = array.array("f", bytes(size.value))
        pointer._obj.value = 4096

    def on_cuMemcpyHtoD_v2(self, pointer: Any, host: Any, size: Any) -> None:
        assert pointer.value == 4096
        ctypes.memmove(self.memory.buffer_info()[0], host, size.value)

    def on_cuMemcpyDtoH_v2(self, host: Any, pointer: Any, size: Any) -> None:
        ctypes.memmove(host, self.memory.buffer_info()[0], size.value)

    def on_cuLaunchKernel(self, function: Any, *shape: Any) -> None:
        assert function.value == 9
        assert shape[6:8] == (0, None)
        blocks, threads, values = shape[0], shape[3], shape[8]
        turns = ctypes.cast(values[3], ctypes.POINTER(ctypes.c_uint))[0]
        a = ctypes.cast(values[1], ctypes.POINTER(ctypes.c_float))[0]
        b = ctypes.cast(values[2], ctypes.POINTER(ctypes.c_float))[0]
        self.launches += 1
        # The kernel swaps x and a * x + b: after an even number of steps the first values are back.
        assert (a, b, turns * 4 % 2) == (-1.0, 3.0, 0)
        if self.launches <= 2:
            self.memory = array.array("f", [8 * index + 28 for index in range(blocks * threads)])
        if self.wrong_thread is not None and self.launches > 1:
            self.memory[self.wrong_thread] += 1

    def on_cuCtxSynchronize(self) -> None:
        self.clock.seconds += self.batch_s

    def on_cuMemFree_v2(self, pointer: Any) -> None:
        assert pointer.value == 4096

    def on_cuGetErrorString(self, code: int, text: Any) -> None:
        text._obj.value = b"made up"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("throughput_probe", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUTPUT", str(tmp_path / "termination-log"))
    monkeypatch.setattr(module, "board", lambda: ("570.133.20", 23028))
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    return module


def run(program: ModuleType, monkeypatch: pytest.MonkeyPatch, seconds: str = "2", **faults: Any) -> tuple[int, Any]:
    clock = Clock()
    wrong = faults.pop("wrong_thread", None)
    driver = Driver(clock, **faults)
    driver.wrong_thread = wrong
    monkeypatch.setattr(program, "time", clock)
    monkeypatch.setattr(program.ctypes, "CDLL", lambda name: driver)
    status = program.main(["throughput.py", seconds])
    text = Path(program.OUTPUT).read_text()
    assert len(text.encode()) <= 4096
    return status, json.loads(text)


def test_it_counts_equal_pieces_of_work_in_windows_of_time(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, report = run(program, monkeypatch)
    assert status == 0
    assert report["error"] is None
    assert report["verified"] is True
    assert report["gpu"] == {
        "uuid": "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f",
        "name": "NVIDIA A10G",
        "memoryTotalMiB": 23028,
        "memoryFreeMiB": 22000,
        "multiprocessors": 3,
        "boardMemoryMiB": 23028,
    }
    assert (report["cuda"], report["driver"]) == ("12.8", "570.133.20")
    assert report["work"] == 3 * 4 * 256 * 32768 * 32
    windows = report["windows"]
    assert (len(windows["counts"]), windows["width"]) == (20, 100.0)
    assert all(9 <= count <= 11 for count in windows["counts"])
    assert windows["elapsed"] == pytest.approx(2000, abs=20)


def test_a_long_measurement_still_fits_the_message(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    _, report = run(program, monkeypatch, "600", batch_s=0.05)
    assert len(report["windows"]["counts"]) == program.MAX_WINDOWS


@pytest.mark.parametrize(
    ("faults", "status", "reason", "words"),
    [
        ({"fails": "cuInit"}, 1, "CudaFailed", "cuInit: made up (999)"),
        # As a real driver without a device answers.
        ({"fails": "cuInit", "code": 100}, 1, "NoGpuVisible", "cuInit: made up (100)"),
        ({"fails": "cuMemAlloc_v2"}, 1, "CudaFailed", "cuMemAlloc_v2"),
        ({"fails": "cuModuleLoadData"}, 1, "CudaFailed", "cuModuleLoadData"),
        ({"devices": 0}, 1, "NoGpuVisible", "no device"),
        ({"wrong_thread": 5}, 1, "WrongResult", "1 of 3072 threads"),
        ({"seconds": "soon"}, 2, "ProbeBroken", "ValueError"),
    ],
)
def test_what_goes_wrong_is_named(
    program: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    faults: dict[str, Any],
    status: int,
    reason: str,
    words: str,
) -> None:
    code, report = run(program, monkeypatch, **faults)
    assert (code, report["error"]["reason"]) == (status, reason)
    assert words in report["error"]["message"]
    assert report["verified"] is False
    assert report["driver"] == ("" if reason == "ProbeBroken" else "570.133.20")


def test_without_the_drivers_library(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(program.ctypes, "CDLL", missing)
    assert program.main(["throughput.py", "1"]) == 1
    assert json.loads(Path(program.OUTPUT).read_text())["error"]["reason"] == "NoDriverLibrary"


def test_it_runs_as_a_program_of_its_own_without_anything_installed(tmp_path: Path) -> None:
    output = tmp_path / "termination-log"
    text = PROGRAM.read_text().replace("/dev/termination-log", str(output)).replace("libcuda.so.1", "no-such-library")
    done = subprocess.run(
        [sys.executable, "-S", "-c", text, "1"], capture_output=True, timeout=60, check=False, env={"PATH": ""}
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(output.read_text())["error"]["reason"] == "NoDriverLibrary"
