"""The few calls of NVIDIA's driver API that a throughput probe makes, answered from the node's GPU table.

Values and error codes are those of ``cuda.h`` (CUDA 13). A kernel does not run: its result is known
(:class:`MultiplyAdd`) and it takes its time, which is shared among the processes that use the same GPU at the moment:

- time-slicing: each gets an equal part while others work, all of it while alone; with SANDBOX_GPU_SHARE set this
  process is the starved one and gets that part as long as there are others;
- MPS: each gets the part of the multiprocessors that the daemon set, whatever the others do.

Processes know of each other through one file each in SANDBOX_GPU_USE/<uuid>/<pid> (pid, name, MiB, share), whose time
of change says when it last worked. Waiting is sleeping: fifty nodes with four sharers each fit two cores. A process
that the machine woke too late finds its kernels done, as a GPU does not wait for its host.

It is one file on purpose: containers load it as a plain module from the folder on their ``PYTHONPATH``, outside any
package, and two hundred of them start at once.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import struct
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

# Nothing that is slow to import: two hundred of these start at once. So no dataclasses and no pathlib.

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED = 0, 1, 2, 3
DEVICE_UNAVAILABLE, NO_DEVICE, INVALID_DEVICE, INVALID_CONTEXT = 46, 100, 101, 201
INVALID_PTX, INVALID_HANDLE, NOT_FOUND, ILLEGAL_ADDRESS, NOT_SUPPORTED = 218, 400, 500, 700, 801
_TEXTS = {
    SUCCESS: b"no error",
    INVALID_VALUE: b"invalid argument",
    OUT_OF_MEMORY: b"out of memory",
    NOT_INITIALIZED: b"initialization error",
    DEVICE_UNAVAILABLE: b"CUDA-capable device(s) is/are busy or unavailable",
    NO_DEVICE: b"no CUDA-capable device is detected",
    INVALID_DEVICE: b"invalid device ordinal",
    INVALID_CONTEXT: b"invalid device context",
    INVALID_PTX: b"a PTX JIT compilation failed",
    INVALID_HANDLE: b"invalid resource handle",
    NOT_FOUND: b"named symbol not found",
    ILLEGAL_ADDRESS: b"an illegal memory access was encountered",
    NOT_SUPPORTED: b"operation not supported",
}
_THREADS_PER_BLOCK, _WARP, _CLOCK_KHZ, _MULTIPROCESSORS, _MAJOR, _MINOR = 1, 10, 13, 16, 75, 76

_MIB = 1 << 20
_CONTEXT_MIB = 254  # what a context itself takes, as with vectorAdd
#: Real seconds that a kernel takes alone on its GPU; short enough to count, long enough for two cores.
_KERNEL_SECONDS = 0.01
#: Real seconds that a process may wake up too late without losing GPU time.
_LAG = 1.0
#: Real seconds without a launch after which a process does not use its GPU any more; between two looks at the others.
_IDLE, _LOOK = 2.0, 0.05
_REAL_TIME = time.time


class Device(NamedTuple):
    """A line of the GPU table."""

    uuid: str
    name: str
    driver: str
    memory: int
    capability: tuple[int, int]
    cuda: tuple[int, int]
    multiprocessors: int

    @classmethod
    def of(cls, row: str) -> Device:
        _, uuid, name, driver, memory, capability, cuda, multiprocessors = row.split("\t")
        return cls(uuid, name, driver, int(memory) * _MIB, _pair(capability), _pair(cuda), int(multiprocessors))


def _pair(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return int(major), int(minor or 0)


def visible_devices() -> list[Device]:
    """The GPUs of the table that this container may see, in its order."""
    wanted = os.environ.get("NVIDIA_VISIBLE_DEVICES", "").split(",")
    with open(os.environ["SANDBOX_GPU_TABLE"]) as table:
        devices = [Device.of(row) for row in table.read().splitlines() if row]
    return [device for device in devices if wanted == ["all"] or device.uuid in wanted]


class Sharing:
    """Which part of a GPU this process has."""

    def __init__(self, device: Device) -> None:
        self._folder = os.path.join(os.environ.get("SANDBOX_GPU_USE", "/nonexistent"), device.uuid)
        self._name = str(os.getpid())
        self._file = os.path.join(self._folder, self._name)
        self.replicas = int(os.environ.get("SANDBOX_MPS_REPLICAS", "0"))
        self._share = float(os.environ.get("SANDBOX_GPU_SHARE", "0"))
        self._looked = self._touched = 0.0
        self._others: list[float] = []

    def others(self) -> list[float]:
        """The shares of the other processes that work now; 0 for those that get what is left."""
        now = _REAL_TIME()
        if now - self._looked < _LOOK:
            return self._others
        self._looked, self._others = now, []
        for name, changed, fields in self._entries():
            if now - changed > _IDLE:
                continue
            if not os.path.exists(f"/proc/{name}"):  # killed before it could tidy up
                _remove(os.path.join(self._folder, name))
                continue
            self._others.append(float(fields[3]) if len(fields) > 3 else 0.0)
        return self._others

    def _entries(self) -> list[tuple[str, float, list[str]]]:
        """Name, time of change and fields of the others' files."""
        found = []
        for entry in os.scandir(self._folder) if os.path.isdir(self._folder) else []:
            if entry.name == self._name:
                continue
            try:
                with open(entry.path) as file:
                    found.append((entry.name, entry.stat().st_mtime, file.read().split("\t")))
            except FileNotFoundError:
                continue
        return found

    def part(self) -> float:
        """Of the GPU's time, between 0 and 1."""
        if self.replicas:
            return self.thread_percentage / 100
        others = self.others()
        if not others:
            return 1.0
        if self._share:
            return self._share
        left = 1.0 - sum(others)
        return left / (1 + sum(1 for share in others if not share))

    @property
    def thread_percentage(self) -> int:
        """``set_default_active_thread_percentage`` of the MPS daemon (k8s-device-plugin ``mps/daemon.go``)."""
        return 100 // self.replicas if self.replicas else 100

    def enter(self, allocated: int) -> None:
        """Tell the others, or how much memory is taken now."""
        os.makedirs(self._folder, exist_ok=True)
        fields = (self._name, "python3", str(_CONTEXT_MIB + allocated // _MIB), str(self._share))
        with open(self._file, "w") as file:
            file.write("\t".join(fields) + "\n")
        atexit.register(self.leave)

    def works(self) -> None:
        now = _REAL_TIME()
        if now - self._touched > _IDLE / 8:
            self._touched = now
            if os.path.exists(self._file):
                os.utime(self._file)

    def leave(self) -> None:
        _remove(self._file)

    def used_by_others(self) -> int:
        """Bytes."""
        alive = [fields for name, _, fields in self._entries() if os.path.exists(f"/proc/{name}")]
        return sum(int(fields[2]) * _MIB for fields in alive if len(fields) > 2)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


class Context:
    """A CUDA context: its memory by address, and when the GPU will have done what was launched.

    :ivar late: simulated seconds that the machine woke this process too late when it last waited.
    :ivar results: what kernels have stored where; computed only when the program reads it.
    """

    def __init__(self, device: Device, sharing: Sharing) -> None:
        self.device, self.sharing = device, sharing
        self.memory: dict[int, Any] = {}
        self.results: dict[int, tuple[MultiplyAdd, int, bool, float]] = {}
        self.done_at = self.late = 0.0

    @property
    def total(self) -> int:
        """Bytes; an MPS client too sees the whole GPU's."""
        return self.device.memory

    @property
    def limit(self) -> int:
        """Bytes; ``set_default_device_pinned_mem_limit`` of the MPS daemon, which shows in what is free."""
        return self.device.memory // max(1, self.sharing.replicas)

    @property
    def allocated(self) -> int:
        return sum(len(buffer) for buffer in self.memory.values())

    def free(self) -> int:
        mine = self.allocated + _CONTEXT_MIB * _MIB
        others = 0 if self.sharing.replicas else self.sharing.used_by_others()
        return max(0, self.limit - mine - others)

    def buffer(self, address: int, size: int) -> Any:
        """The ``size`` bytes at an address of the device, or None if they are not allocated."""
        for start, memory in self.memory.items():
            if start <= address and address + size <= start + len(memory):
                return (ctypes.c_ubyte * size).from_buffer(memory, address - start)
        return None

    def store(self) -> None:
        for address, (kernel, threads, even, b) in self.results.items():
            memory = self.buffer(address, threads * 4)
            if memory is not None:
                ctypes.memmove(memory, kernel.result(threads, even, b), threads * 4)
        self.results.clear()

    def launch(self) -> None:
        """One kernel joins the queue."""
        speed = float(os.environ.get("SANDBOX_SPEED", "1"))
        self.sharing.works()
        start = max(self.done_at, time.monotonic() - min(self.late, _LAG * speed))
        self.done_at, self.late = start + _KERNEL_SECONDS * speed / self.sharing.part(), 0.0

    def wait(self) -> None:
        left = self.done_at - time.monotonic()
        if left > 0:
            time.sleep(left)
        self.late = time.monotonic() - self.done_at if self.done_at else 0.0


def _value(argument: Any) -> int:
    """An integer argument, whatever ctypes has made of it."""
    found = getattr(argument, "value", argument)
    return int(found or 0)


def _target(argument: Any) -> Any:
    """What an argument that is written to points at."""
    if hasattr(argument, "_obj"):  # byref()
        return argument._obj
    return getattr(argument, "contents", argument)


def _put(argument: Any, value: Any) -> int:
    _target(argument).value = value
    return SUCCESS


def _text(argument: Any) -> str:
    found = getattr(argument, "value", argument)
    return found.decode() if isinstance(found, bytes) else str(found)


class Driver:
    """The library: every method is one function of ``cuda.h``, with its arguments and its code."""

    def __init__(self) -> None:
        self._devices: list[Device] | None = None
        self._context: Context | None = None
        self._modules: list[str] = []
        self._functions: list[MultiplyAdd] = []
        self._next_address = 0x7F0000000000

    def cuInit(self, _flags: Any) -> int:
        self._devices = visible_devices()
        return SUCCESS if self._devices else NO_DEVICE

    def cuDriverGetVersion(self, version: Any) -> int:
        major, minor = (self._devices or visible_devices() or [_NONE])[0].cuda
        return _put(version, major * 1000 + minor * 10)

    def cuDeviceGetCount(self, count: Any) -> int:
        return NOT_INITIALIZED if self._devices is None else _put(count, len(self._devices))

    def cuDeviceGet(self, device: Any, ordinal: Any) -> int:
        if self._devices is None:
            return NOT_INITIALIZED
        return _put(device, _value(ordinal)) if 0 <= _value(ordinal) < len(self._devices) else INVALID_DEVICE

    def _device(self, handle: Any) -> Device | None:
        found = self._devices or []
        return found[_value(handle)] if 0 <= _value(handle) < len(found) else None

    def cuDeviceGetName(self, name: Any, length: Any, handle: Any) -> int:
        device = self._device(handle)
        if device is None:
            return INVALID_DEVICE
        text = device.name.encode()[: _value(length) - 1] + b"\0"
        ctypes.memmove(ctypes.addressof(_target(name)), text, len(text))
        return SUCCESS

    def cuDeviceGetUuid(self, uuid: Any, handle: Any) -> int:
        device = self._device(handle)
        if device is None:
            return INVALID_DEVICE
        ctypes.memmove(
            ctypes.addressof(_target(uuid)), bytes.fromhex(device.uuid.partition("-")[2].replace("-", "")), 16
        )
        return SUCCESS

    cuDeviceGetUuid_v2 = cuDeviceGetUuid

    def cuDeviceGetAttribute(self, value: Any, attribute: Any, handle: Any) -> int:
        device = self._device(handle)
        if device is None:
            return INVALID_DEVICE
        known = {
            _THREADS_PER_BLOCK: 1024,
            _WARP: 32,
            _CLOCK_KHZ: 1_710_000,
            _MULTIPROCESSORS: max(1, device.multiprocessors * Sharing(device).thread_percentage // 100),
            _MAJOR: device.capability[0],
            _MINOR: device.capability[1],
        }
        return _put(value, known[_value(attribute)]) if _value(attribute) in known else INVALID_VALUE

    def cuCtxCreate_v2(self, context: Any, _flags: Any, handle: Any) -> int:
        device = self._device(handle)
        if device is None:
            return INVALID_DEVICE
        sharing = Sharing(device)
        # The daemon has set the GPU to EXCLUSIVE_PROCESS: without it only one process gets a context.
        if sharing.replicas and os.environ.get("SANDBOX_MPS_DAEMON") == "0" and sharing.others():
            return DEVICE_UNAVAILABLE
        self._context = Context(device, sharing)
        sharing.enter(0)
        return _put(context, 1)

    def cuCtxDestroy_v2(self, _context: Any) -> int:
        if self._context is None:
            return INVALID_CONTEXT
        self._context.sharing.leave()
        self._context = None
        return SUCCESS

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        if self._context is None:
            return INVALID_CONTEXT
        _put(free, self._context.free())
        return _put(total, self._context.total)

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        context, wanted = self._context, _value(size)
        if context is None:
            return INVALID_CONTEXT
        if wanted <= 0:
            return INVALID_VALUE
        if wanted > context.free():
            return OUT_OF_MEMORY
        context.memory[self._next_address] = bytearray(wanted)
        _put(address, self._next_address)
        self._next_address += (wanted + 511) // 512 * 512
        context.sharing.enter(context.allocated)
        return SUCCESS

    def cuMemFree_v2(self, address: Any) -> int:
        if self._context is None:
            return INVALID_CONTEXT
        if self._context.memory.pop(_value(address), None) is None:
            return INVALID_VALUE
        self._context.sharing.enter(self._context.allocated)
        return SUCCESS

    def cuMemcpyHtoD_v2(self, address: Any, source: Any, size: Any) -> int:
        return self._copy(address, size, lambda memory: ctypes.memmove(memory, _pointer(source), _value(size)))

    def cuMemcpyDtoH_v2(self, target: Any, address: Any, size: Any) -> int:
        if self._context is not None:
            self._context.wait()
            self._context.store()
        return self._copy(address, size, lambda memory: ctypes.memmove(_pointer(target), memory, _value(size)))

    def _copy(self, address: Any, size: Any, copy: Callable[[Any], Any]) -> int:
        if self._context is None:
            return INVALID_CONTEXT
        memory = self._context.buffer(_value(address), _value(size))
        if memory is None:
            return INVALID_VALUE
        self._context.results.pop(_value(address), None)
        copy(memory)
        return SUCCESS

    def cuModuleLoadData(self, module: Any, image: Any) -> int:
        text = _text(image)
        if self._context is None:
            return INVALID_CONTEXT
        if ".version" not in text or ".target" not in text:
            return INVALID_PTX
        self._modules.append(text)
        return _put(module, len(self._modules))

    def cuModuleGetFunction(self, function: Any, module: Any, name: Any) -> int:
        if not 0 < _value(module) <= len(self._modules):
            return INVALID_HANDLE
        ptx = self._modules[_value(module) - 1]
        if _text(name) != "multiply_add" or ".entry multiply_add(" not in ptx:
            return NOT_FOUND
        self._functions.append(MultiplyAdd.of(ptx))
        return _put(function, len(self._functions))

    def cuLaunchKernel(self, function: Any, *arguments: Any) -> int:
        """Arguments: grid and block in three dimensions each, shared memory, stream, parameters, extra."""
        if self._context is None:
            return INVALID_CONTEXT
        if not 0 < _value(function) <= len(self._functions) or len(arguments) != 10:
            return INVALID_VALUE
        threads = 1
        for size in arguments[:6]:
            threads *= _value(size)
        return self._functions[_value(function) - 1].launch(self._context, threads, arguments[8])

    def cuCtxSynchronize(self) -> int:
        if self._context is None:
            return INVALID_CONTEXT
        self._context.wait()
        return SUCCESS

    def cuGetErrorString(self, code: Any, text: Any) -> int:
        known = _TEXTS.get(_value(code))
        _target(text).value = known
        return SUCCESS if known else INVALID_VALUE


_NONE = Device("", "", "", 0, (0, 0), (13, 0), 0)


def _pointer(argument: Any) -> int:
    """The address of host memory."""
    found = _target(argument)
    if isinstance(found, ctypes.c_void_p):
        return int(found.value or 0)
    return found if isinstance(found, int) else ctypes.addressof(found)


class MultiplyAdd(NamedTuple):
    """The one kernel that is known: ``multiply_add(out, a, b, turns)`` repeats ``x = a * x + b`` in every thread and
    stores the sum of the thread's chains. Their number, first values and steps are read from the PTX.

    With ``a = -1`` two steps are none, so the result is known without computing it; no other ``a`` is.
    """

    offsets: tuple[float, ...]
    steps_per_turn: int

    @classmethod
    def of(cls, ptx: str) -> MultiplyAdd:
        first = re.findall(r"add\.rn\.f32 %x\d+, %x0, 0f([0-9A-F]{8});", ptx)
        offsets = (0.0, *(struct.unpack(">f", bytes.fromhex(bits))[0] for bits in first))
        return cls(offsets, len(re.findall(r"\bfma\.rn\.f32 ", ptx)) // len(offsets))

    def launch(self, context: Context, threads: int, parameters: Any) -> int:
        pointers = _target(parameters)
        out = ctypes.c_uint64.from_address(pointers[0]).value
        a, b = (ctypes.c_float.from_address(pointers[index]).value for index in (1, 2))
        turns = ctypes.c_uint32.from_address(pointers[3]).value
        if a != -1.0:
            return NOT_SUPPORTED
        if context.buffer(out, threads * 4) is None:
            return ILLEGAL_ADDRESS
        even = turns * self.steps_per_turn % 2 == 0
        context.results[out] = (self, threads, even, b)
        context.launch()
        return SUCCESS

    def result(self, threads: int, even: bool, b: float) -> bytes:
        """What the threads have stored."""
        chains, total = len(self.offsets), sum(self.offsets)
        if even:
            return array("f", [chains * index + total for index in range(threads)]).tobytes()
        return array("f", [chains * (b - index) - total for index in range(threads)]).tobytes()


class _Library:
    """Functions that take the attributes of ctypes' (``argtypes``, ``restype``)."""

    def __init__(self) -> None:
        driver = Driver()
        for name in dir(driver):
            if name.startswith("cu"):
                setattr(self, name, _function(getattr(driver, name)))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"libcuda.so.1: undefined symbol: {name}")

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def _function(method: Callable[..., int]) -> Callable[..., int]:
    def call(*arguments: Any) -> int:
        return method(*arguments)

    return call


def library() -> Any:
    return _Library()
