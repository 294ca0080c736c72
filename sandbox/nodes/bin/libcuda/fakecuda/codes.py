"""The error codes of ``cuda.h`` (CUDA 13) that the driver answers with, and their texts."""

from __future__ import annotations

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED = 0, 1, 2, 3
DEVICE_UNAVAILABLE, NO_DEVICE, INVALID_DEVICE, INVALID_CONTEXT = 46, 100, 101, 201
INVALID_PTX, INVALID_HANDLE, NOT_FOUND, ILLEGAL_ADDRESS, NOT_SUPPORTED = 218, 400, 500, 700, 801
TEXTS = {
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
