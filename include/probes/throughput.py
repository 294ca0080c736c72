"""Measures how fast a GPU computes for this process, and writes it as one JSON object into the termination message.

    python3 throughput.py SECONDS

Needs Python 3.8 and glibc, and nothing else: it talks to the CUDA driver (``libcuda.so.1``, which the NVIDIA container
runtime puts into the container) and brings its kernel as PTX text, which the driver compiles. No toolkit, no compiler.

The kernel is a loop of fused multiply-adds, FP32, on registers only: it measures multiprocessors, not memory. Each
launch does the same work, so launches counted per window of time are a speed. ``x = a * x + b`` with ``a = -1`` swaps
``x`` and ``b - x``, both exact, so after an even number of steps every thread must hold its first values again: a GPU
that computes wrongly even once is found out.

Exit status: 0 measured, 1 the GPU does not do what it should, 2 the probe itself could not run.
Sources: CUDA driver API reference; PTX ISA 6.0 (``fma.rn.f32``).
"""

from __future__ import annotations

import array
import ctypes
import json
import signal
import subprocess
import sys
import time

SCHEMA = "gpu-fleet.io/throughput/v1"
OUTPUT = "/dev/termination-log"
LIBRARY = "libcuda.so.1"

#: Threads per block, and blocks per multiprocessor: 1024 threads with 8 independent chains each keep every FP32 unit
#: busy from Volta on.
THREADS, BLOCKS = 256, 4
#: Loop turns per launch, 32 multiply-adds each: 5 to 10 ms on GPUs from T4 to H200. Even, so that values return.
TURNS = 32768
CHAINS, UNROLLED = 8, 4
FMAS_PER_THREAD = TURNS * CHAINS * UNROLLED
#: Windows of time at most, and their least width in seconds; the message has to stay below 4096 bytes.
MAX_WINDOWS, MIN_WIDTH = 160, 0.1
MIB = 1024 * 1024
#: CU_CTX_SCHED_BLOCKING_SYNC: wait for the GPU asleep. Sharers that spin would compete for the node's few CPUs.
BLOCKING_SYNC = 4
#: CUDA_ERROR_NO_DEVICE.
NO_DEVICE = 100
#: CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT; a client of MPS sees its share.
MULTIPROCESSORS = 16


def kernel() -> str:
    """The kernel's PTX: each thread starts ``CHAINS`` values at its number and stores their sum at the end."""
    chains = [f"%x{index}" for index in range(CHAINS)]
    lines = [
        ".version 6.0",
        ".target sm_70",
        ".address_size 64",
        ".visible .entry multiply_add(.param .u64 out, .param .f32 a, .param .f32 b, .param .u32 turns)",
        "{",
        "  .reg .pred %more;",
        "  .reg .b32 %block, %width, %thread, %index, %left;",
        "  .reg .b64 %base, %offset;",
        "  .reg .f32 %a, %b, {};".format(", ".join(chains)),
        "  ld.param.u64 %base, [out];",
        "  ld.param.f32 %a, [a];",
        "  ld.param.f32 %b, [b];",
        "  ld.param.u32 %left, [turns];",
        "  mov.u32 %block, %ctaid.x;",
        "  mov.u32 %width, %ntid.x;",
        "  mov.u32 %thread, %tid.x;",
        "  mad.lo.u32 %index, %block, %width, %thread;",
        "  cvt.rn.f32.u32 %x0, %index;",
    ]
    lines += [f"  add.rn.f32 {chain}, %x0, 0f{_bits(index):08X};" for index, chain in enumerate(chains) if index]
    lines.append("turn:")
    lines += [f"  fma.rn.f32 {chain}, {chain}, %a, %b;" for _ in range(UNROLLED) for chain in chains]
    lines += ["  sub.u32 %left, %left, 1;", "  setp.ne.u32 %more, %left, 0;", "  @%more bra turn;"]
    lines += [f"  add.rn.f32 %x0, %x0, {chain};" for chain in chains[1:]]
    lines += [
        "  cvta.to.global.u64 %base, %base;",
        "  mul.wide.u32 %offset, %index, 4;",
        "  add.u64 %base, %base, %offset;",
        "  st.global.f32 [%base], %x0;",
        "  ret;",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _bits(number: float) -> int:
    """A number's IEEE 754 single precision pattern."""
    return array.array("I", array.array("f", [number]).tobytes())[0]


class Trouble(Exception):
    """Why there is no measurement; ``status`` is the exit status."""

    def __init__(self, reason: str, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.reason, self.message, self.status = reason, message, status


class Cuda:
    """The few calls of the driver API that are needed, checked."""

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise Trouble("NoDriverLibrary", f"{error}: the NVIDIA runtime did not set it up") from error

    def call(self, name: str, *arguments: object) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(code, ctypes.byref(text))
            words = text.value.decode(errors="replace") if text.value else "unknown error"
            reason = "NoGpuVisible" if code == NO_DEVICE else "CudaFailed"
            raise Trouble(reason, f"{name}: {words} ({code})")

    def integer(self, name: str, *arguments: object) -> int:
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def device(self) -> dict:
        """The first device: what the driver tells about it."""
        self.call("cuInit", 0)
        if self.integer("cuDeviceGetCount") < 1:
            raise Trouble("NoGpuVisible", "the CUDA driver lists no device")
        device = self.integer("cuDeviceGet", 0)
        name, uuid = ctypes.create_string_buffer(100), ctypes.create_string_buffer(16)
        self.call("cuDeviceGetName", name, 100, device)
        self.call("cuDeviceGetUuid", uuid, device)
        context = ctypes.c_void_p()
        self.call("cuCtxCreate_v2", ctypes.byref(context), BLOCKING_SYNC, device)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        version = self.integer("cuDriverGetVersion")
        digits = uuid.raw.hex()
        return {
            "cuda": f"{version // 1000}.{version % 1000 // 10}",
            "gpu": {
                "uuid": "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])),
                "name": name.value.decode(errors="replace")[:60],
                "memoryTotalMiB": total.value // MIB,
                "memoryFreeMiB": free.value // MIB,
                "multiprocessors": self.integer("cuDeviceGetAttribute", MULTIPROCESSORS, device),
            },
        }


class Work:
    """The kernel, its memory, and what every thread has to come to."""

    def __init__(self, cuda: Cuda, multiprocessors: int) -> None:
        self.cuda, self.blocks = cuda, multiprocessors * BLOCKS
        self.count = self.blocks * THREADS
        self.size = ctypes.c_size_t(self.count * 4)
        module, function, buffer = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
        cuda.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(kernel().encode()))
        cuda.call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"multiply_add"))
        cuda.call("cuMemAlloc_v2", ctypes.byref(buffer), self.size)
        self.function, self.buffer = function, buffer
        offsets = sum(range(CHAINS))
        self.expected = array.array("f", [CHAINS * index + offsets for index in range(self.count)])
        values = [buffer, ctypes.c_float(-1.0), ctypes.c_float(3.0), ctypes.c_uint(TURNS)]
        self.values = values
        self.arguments = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))

    def launch(self) -> None:
        self.cuda.call("cuLaunchKernel", self.function, self.blocks, 1, 1, THREADS, 1, 1, 0, None, self.arguments, None)
        self.cuda.call("cuCtxSynchronize")

    def clear(self) -> None:
        zeros = array.array("f", bytes(self.count * 4))
        self.cuda.call("cuMemcpyHtoD_v2", self.buffer, ctypes.c_void_p(zeros.buffer_info()[0]), self.size)

    def verify(self) -> None:
        found = array.array("f", bytes(self.count * 4))
        self.cuda.call("cuMemcpyDtoH_v2", ctypes.c_void_p(found.buffer_info()[0]), self.buffer, self.size)
        wrong = sum(found[index] != self.expected[index] for index in range(self.count))
        if wrong:
            raise Trouble("WrongResult", f"{wrong} of {self.count} threads computed wrongly")

    def close(self) -> None:
        self.cuda.call("cuMemFree_v2", self.buffer)


def measure(work: Work, seconds: float) -> dict:
    """Launches per window of time.

    ``from`` (milliseconds since 1970) and ``elapsed`` (milliseconds) are by the node's clock, which all its containers
    share: by it their windows are laid side by side. ``width`` (milliseconds) is by the monotonic one, which nobody
    sets: by it the speed is taken.
    """
    width = max(MIN_WIDTH, seconds / MAX_WINDOWS)
    counts = [0] * max(1, int(seconds / width + 0.5))
    began, origin = time.time(), time.monotonic()
    while True:
        work.launch()
        index = int((time.monotonic() - origin) / width)
        if index >= len(counts):
            break
        counts[index] += 1
    return {
        "from": int(began * 1000),
        "elapsed": int((time.time() - began) * 1000),
        "width": round(width * 1000, 3),
        "counts": counts,
    }


def board() -> tuple:
    """Driver version and memory of the whole board by nvidia-smi; CUDA tells neither (its total leaves out what the
    driver keeps).
    """
    query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=True).stdout
        driver, memory = text.decode(errors="replace").splitlines()[0].split(",")
        return driver.strip()[:30], int(memory)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return "", None


def interrupted(*_: object) -> None:
    raise Trouble("Interrupted", "the probe was told to stop", 2)


def main(arguments: list) -> int:
    signal.signal(signal.SIGTERM, interrupted)
    report = {
        "schema": SCHEMA,
        "startedAt": int(time.time() * 1000),
        "finishedAt": 0,
        "driver": "",
        "cuda": "",
        "gpu": None,
        "work": 0,
        "windows": None,
        "verified": False,
        "error": None,
    }
    status = 0
    try:
        seconds = float(arguments[1])
        report["driver"], memory = board()
        cuda = Cuda()
        report.update(cuda.device())
        report["gpu"]["boardMemoryMiB"] = memory
        work = Work(cuda, report["gpu"]["multiprocessors"])
        report["work"] = work.count * FMAS_PER_THREAD
        # The first launch compiles the kernel and wakes the GPU: not to be measured.
        work.clear()
        work.launch()
        work.verify()
        work.clear()
        report["windows"] = measure(work, seconds)
        work.verify()
        report["verified"] = True
        work.close()
    except Trouble as trouble:
        report["error"] = {"reason": trouble.reason, "message": trouble.message[:300]}
        status = trouble.status
    except Exception as error:  # noqa: BLE001  (whatever it is, the message must say it)
        report["error"] = {"reason": "ProbeBroken", "message": f"{type(error).__name__}: {error}"[:300]}
        status = 2
    report["finishedAt"] = int(time.time() * 1000)
    with open(OUTPUT, "w") as file:
        file.write(json.dumps(report, separators=(",", ":")) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv))
