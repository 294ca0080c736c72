"""The library: the functions of ``cuda.h`` that a throughput probe calls."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

from .arguments import integer_of, pointer_to, put, target_of, text_of
from .codes import (
    DEVICE_UNAVAILABLE,
    INVALID_CONTEXT,
    INVALID_DEVICE,
    INVALID_HANDLE,
    INVALID_PTX,
    INVALID_VALUE,
    NO_DEVICE,
    NOT_FOUND,
    NOT_INITIALIZED,
    OUT_OF_MEMORY,
    SUCCESS,
    TEXTS,
)
from .context import Context
from .devices import Device, visible_devices
from .kernel import MultiplyAdd
from .sharing import Sharing

_THREADS_PER_BLOCK, _WARP, _CLOCK_KHZ, _MULTIPROCESSORS, _MAJOR, _MINOR = 1, 10, 13, 16, 75, 76
_NONE = Device("", "", "", 0, (0, 0), (13, 0), 0)


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
        return put(version, major * 1000 + minor * 10)

    def cuDeviceGetCount(self, count: Any) -> int:
        return NOT_INITIALIZED if self._devices is None else put(count, len(self._devices))

    def cuDeviceGet(self, device: Any, ordinal: Any) -> int:
        if self._devices is None:
            return NOT_INITIALIZED
        return put(device, integer_of(ordinal)) if 0 <= integer_of(ordinal) < len(self._devices) else INVALID_DEVICE

    def _device(self, handle: Any) -> Device | None:
        found = self._devices or []
        return found[integer_of(handle)] if 0 <= integer_of(handle) < len(found) else None

    def cuDeviceGetName(self, name: Any, length: Any, handle: Any) -> int:
        device = self._device(handle)
        if device is None:
            return INVALID_DEVICE
        text = device.name.encode()[: integer_of(length) - 1] + b"\0"
        ctypes.memmove(ctypes.addressof(target_of(name)), text, len(text))
        return SUCCESS

    def cuDeviceGetUuid(self, uuid: Any, handle: Any) -> int:
        device = self._device(handle)
        if device is None:
            return INVALID_DEVICE
        ctypes.memmove(
            ctypes.addressof(target_of(uuid)), bytes.fromhex(device.uuid.partition("-")[2].replace("-", "")), 16
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
        return put(value, known[integer_of(attribute)]) if integer_of(attribute) in known else INVALID_VALUE

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
        return put(context, 1)

    def cuCtxDestroy_v2(self, _context: Any) -> int:
        if self._context is None:
            return INVALID_CONTEXT
        self._context.sharing.leave()
        self._context = None
        return SUCCESS

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        if self._context is None:
            return INVALID_CONTEXT
        put(free, self._context.free())
        return put(total, self._context.total)

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        context, wanted = self._context, integer_of(size)
        if context is None:
            return INVALID_CONTEXT
        if wanted <= 0:
            return INVALID_VALUE
        if wanted > context.free():
            return OUT_OF_MEMORY
        context.memory[self._next_address] = bytearray(wanted)
        put(address, self._next_address)
        self._next_address += (wanted + 511) // 512 * 512
        context.sharing.enter(context.allocated)
        return SUCCESS

    def cuMemFree_v2(self, address: Any) -> int:
        if self._context is None:
            return INVALID_CONTEXT
        if self._context.memory.pop(integer_of(address), None) is None:
            return INVALID_VALUE
        self._context.sharing.enter(self._context.allocated)
        return SUCCESS

    def cuMemcpyHtoD_v2(self, address: Any, source: Any, size: Any) -> int:
        return self._copy(address, size, lambda memory: ctypes.memmove(memory, pointer_to(source), integer_of(size)))

    def cuMemcpyDtoH_v2(self, target: Any, address: Any, size: Any) -> int:
        if self._context is not None:
            self._context.wait()
            self._context.store()
        return self._copy(address, size, lambda memory: ctypes.memmove(pointer_to(target), memory, integer_of(size)))

    def _copy(self, address: Any, size: Any, copy: Callable[[Any], Any]) -> int:
        if self._context is None:
            return INVALID_CONTEXT
        memory = self._context.buffer(integer_of(address), integer_of(size))
        if memory is None:
            return INVALID_VALUE
        self._context.results.pop(integer_of(address), None)
        copy(memory)
        return SUCCESS

    def cuModuleLoadData(self, module: Any, image: Any) -> int:
        text = text_of(image)
        if self._context is None:
            return INVALID_CONTEXT
        if ".version" not in text or ".target" not in text:
            return INVALID_PTX
        self._modules.append(text)
        return put(module, len(self._modules))

    def cuModuleGetFunction(self, function: Any, module: Any, name: Any) -> int:
        if not 0 < integer_of(module) <= len(self._modules):
            return INVALID_HANDLE
        ptx = self._modules[integer_of(module) - 1]
        if text_of(name) != "multiply_add" or ".entry multiply_add(" not in ptx:
            return NOT_FOUND
        self._functions.append(MultiplyAdd.of(ptx))
        return put(function, len(self._functions))

    def cuLaunchKernel(self, function: Any, *arguments: Any) -> int:
        """Arguments: grid and block in three dimensions each, shared memory, stream, parameters, extra."""
        if self._context is None:
            return INVALID_CONTEXT
        if not 0 < integer_of(function) <= len(self._functions) or len(arguments) != 10:
            return INVALID_VALUE
        threads = 1
        for size in arguments[:6]:
            threads *= integer_of(size)
        return self._functions[integer_of(function) - 1].launch(self._context, threads, arguments[8])

    def cuCtxSynchronize(self) -> int:
        if self._context is None:
            return INVALID_CONTEXT
        self._context.wait()
        return SUCCESS

    def cuGetErrorString(self, code: Any, text: Any) -> int:
        known = TEXTS.get(integer_of(code))
        target_of(text).value = known
        return SUCCESS if known else INVALID_VALUE
