"""The CUDA driver of ``python:*`` containers, asked as a throughput probe asks it: by ctypes, in its own process."""

from __future__ import annotations

import asyncio
import json
import textwrap
import time
from pathlib import Path

import pytest

from sandbox.aws.shapes import Shape
from sandbox.nodes.gpus.physical import gpus_of
from sandbox.nodes.runtime.execution import BIN, PYTHON, Command, Executed, search_path

_SHAPE = Shape("g5.xlarge", 4, 1000, 10, "amd64", 1, "A10G", 22888, ("on-demand",), "nitro", 0)
(GPU,) = gpus_of("i-1", _SHAPE)
SPEED = 20.0

PRELUDE = '''
import array, ctypes, json, sys, time
PTX = """
.version 6.0
.target sm_70
.visible .entry multiply_add(.param .u64 out, .param .f32 a, .param .f32 b, .param .u32 turns)
{
  add.rn.f32 %x1, %x0, 0f3F800000;
  fma.rn.f32 %x0, %x0, %a, %b;
  fma.rn.f32 %x1, %x1, %a, %b;
}
"""
cuda = ctypes.CDLL("libcuda.so.1")

def ask(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        sys.exit(f"{name}: {code} {text.value.decode()}")

def integer(name, *arguments):
    value = ctypes.c_int()
    ask(name, ctypes.byref(value), *arguments)
    return value.value

ask("cuInit", 0)
device, context = integer("cuDeviceGet", 0), ctypes.c_void_p()
ask("cuCtxCreate_v2", ctypes.byref(context), 4, device)
module, function, out = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
ask("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(PTX.encode()))
ask("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"multiply_add"))
ask("cuMemAlloc_v2", ctypes.byref(out), ctypes.c_size_t(16))

def launch(turns=2, a=-1.0):
    values = [out, ctypes.c_float(a), ctypes.c_float(3.0), ctypes.c_uint(turns)]
    pointers = (ctypes.c_void_p * 4)(*(ctypes.addressof(value) for value in values))
    ask("cuLaunchKernel", function, 1, 1, 1, 4, 1, 1, 0, None, pointers, None)
    ask("cuCtxSynchronize")

def stored():
    found = array.array("f", bytes(16))
    ask("cuMemcpyDtoH_v2", ctypes.c_void_p(found.buffer_info()[0]), out, ctypes.c_size_t(16))
    return list(found)

def count(seconds):
    began, launches = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        launch()
        launches += 1
    return launches
'''


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "gpus.tsv").write_text(GPU.row() + "\n")
    return {
        "PATH": search_path(sees_gpu=True),
        "PYTHONPATH": str(BIN / "libcuda"),
        "NVIDIA_VISIBLE_DEVICES": GPU.uuid,
        "SANDBOX_GPU_TABLE": str(tmp_path / "gpus.tsv"),
        "SANDBOX_GPU_USE": str(tmp_path / "use"),
        "SANDBOX_SPEED": str(SPEED),
    }


async def _run(script: str, env: dict[str, str], tmp_path: Path) -> tuple[int, str]:
    process = Executed(Command([PYTHON, "-c", PRELUDE + textwrap.dedent(script)], env, tmp_path))
    return await process.wait(), process.output()


async def _together(script: str, tmp_path: Path, *environments: dict[str, str]) -> list[int]:
    """What each of several processes prints, which all start when the last one is ready."""
    gate = f"""
        import os
        open({str(tmp_path)!r} + f"/ready-{{os.getpid()}}", "w").close()
        while sum(name.startswith("ready-") for name in os.listdir({str(tmp_path)!r})) < {len(environments)}:
            time.sleep(0.1)
    """
    both = textwrap.dedent(gate) + textwrap.dedent(script)
    answers = await asyncio.gather(*(_run(both, each, tmp_path) for each in environments))
    assert [code for code, _ in answers] == [0] * len(environments), answers
    return [int(text) for _, text in answers]


async def test_the_device_is_the_one_of_the_table(env, tmp_path):
    script = """
        name, uuid = ctypes.create_string_buffer(100), ctypes.create_string_buffer(16)
        ask("cuDeviceGetName", name, 100, device)
        ask("cuDeviceGetUuid", uuid, device)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ask("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        print(json.dumps({
            "name": name.value.decode(), "uuid": uuid.raw.hex(), "cuda": integer("cuDriverGetVersion"),
            "multiprocessors": integer("cuDeviceGetAttribute", 16, device), "count": integer("cuDeviceGetCount"),
            "total": total.value >> 20, "free": free.value >> 20}))
    """
    code, text = await _run(script, env, tmp_path)
    assert code == 0, text
    assert json.loads(text) == {
        "name": "NVIDIA A10G",
        "uuid": GPU.uuid.removeprefix("GPU-").replace("-", ""),
        "cuda": 13000,
        "multiprocessors": 80,
        "count": 1,
        "total": 23028,
        "free": 23028 - 254 - 1,
    }


async def test_a_kernels_result_is_in_the_devices_memory(env, tmp_path):
    script = "launch(); print(json.dumps(stored())); launch(turns=1); print(json.dumps(stored()))"
    code, text = await _run(script, env, tmp_path)
    assert code == 0, text
    even, odd = (json.loads(line) for line in text.splitlines())
    assert even == [1.0, 3.0, 5.0, 7.0], "two chains that begin at the thread's number, and one more"
    assert odd == [5.0, 3.0, 1.0, -1.0], "each chain is 3 - x"


async def test_memory_keeps_what_was_copied_into_it(env, tmp_path):
    script = """
        source = array.array("f", [1, 2, 3, 4])
        launch()
        ask("cuMemcpyHtoD_v2", out, ctypes.c_void_p(source.buffer_info()[0]), ctypes.c_size_t(16))
        print(json.dumps(stored()))
    """
    assert await _run(script, env, tmp_path) == (0, "[1.0, 2.0, 3.0, 4.0]\n")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            'ask("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"other"))',
            "named symbol not found",
        ),
        ('ask("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(b"nonsense"))', "PTX JIT compilation failed"),
        ('ask("cuMemAlloc_v2", ctypes.byref(out), ctypes.c_size_t(1 << 40))', "out of memory"),
        ('ask("cuMemFree_v2", ctypes.c_uint64(5))', "invalid argument"),
        ("launch(a=2.0)", "operation not supported"),
        ('integer("cuDeviceGet", 1)', "invalid device ordinal"),
    ],
)
async def test_wrong_calls_get_the_drivers_words(env, tmp_path, script, words):
    code, text = await _run(script, env, tmp_path)
    assert code == 1
    assert words in text


async def test_without_a_gpu_there_is_no_driver_in_the_container(env, tmp_path):
    code, text = await _run("", env | {"NVIDIA_VISIBLE_DEVICES": "void"}, tmp_path)
    assert code == 1
    assert "OSError: libcuda.so.1: cannot open shared object file: No such file or directory" in text


async def test_a_lost_gpu_is_no_device(env, tmp_path):
    (tmp_path / "gpus.tsv").write_text("")
    code, text = await _run("", env, tmp_path)
    assert (code, text.strip()) == (1, "cuInit: 100 no CUDA-capable device is detected")


async def test_time_is_the_sandboxs_and_the_nodes_clock_is_not(env, tmp_path):
    script = """
        wall, simulated = time.time(), time.monotonic()
        time.sleep(10)
        print(json.dumps([time.time() - wall, time.monotonic() - simulated]))
    """
    began = time.monotonic()
    _, text = await _run(script, env, tmp_path)
    wall, simulated = json.loads(text)
    assert simulated >= 10
    assert wall == pytest.approx(simulated / SPEED, rel=0.05)
    assert time.monotonic() - began < 9


async def test_sharers_get_equal_parts_and_one_alone_gets_all(env, tmp_path):
    script = "print(count(40))"
    alone = (await _together(script, tmp_path, env))[0]
    for ready in tmp_path.glob("ready-*"):
        ready.unlink()
    shares = await _together(script, tmp_path, *[env] * 4)
    assert sum(shares) == pytest.approx(alone, rel=0.15)
    assert min(shares) > 0.8 * sum(shares) / 4
    assert not list((tmp_path / "use" / GPU.uuid).iterdir()), "each has taken itself out"


async def test_the_starved_one_gets_its_part_and_the_others_the_rest(env, tmp_path):
    starved, *others = await _together("print(count(60))", tmp_path, env | {"SANDBOX_GPU_SHARE": "0.05"}, env, env, env)
    assert starved < 0.3 * min(others)
    assert min(others) > 0.75 * max(others)


async def test_who_was_killed_uses_nothing(env, tmp_path):
    used = tmp_path / "use" / GPU.uuid
    used.mkdir(parents=True)
    (used / "999999999").write_text("999999999\tpython3\t254\t0.0\n")
    alone = (await _together("print(count(20))", tmp_path, env))[0]
    assert alone > 30


class TestMps:
    """Clients of an MPS daemon."""

    @pytest.fixture
    def env(self, env: dict[str, str]) -> dict[str, str]:
        return env | {"SANDBOX_MPS_REPLICAS": "4", "SANDBOX_MPS_DAEMON": "1"}

    async def test_see_their_limits(self, env, tmp_path):
        script = """
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            ask("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
            print(integer("cuDeviceGetAttribute", 16, device), total.value >> 20, free.value >> 20 <= 23028 // 4)
        """
        assert await _run(script, env, tmp_path) == (0, "20 23028 True\n")

    async def test_get_their_part_whatever_the_others_do(self, env, tmp_path):
        alone = (await _together("print(count(40))", tmp_path, env))[0]
        for ready in tmp_path.glob("ready-*"):
            ready.unlink()
        shares = await _together("print(count(40))", tmp_path, *[env] * 4)
        assert min(shares) == pytest.approx(alone, rel=0.2)

    async def test_without_the_daemon_only_one_gets_the_gpu(self, env, tmp_path):
        gone = env | {"SANDBOX_MPS_DAEMON": "0"}
        first = asyncio.create_task(_run("open('holds', 'w').close(); print(count(60))", gone, tmp_path))
        async with asyncio.timeout(20):
            while not (tmp_path / "holds").exists():  # noqa: ASYNC110 - a file cannot be awaited
                await asyncio.sleep(0.02)
        code, text = await _run("", gone, tmp_path)
        assert (code, text.strip()) == (1, "cuCtxCreate_v2: 46 CUDA-capable device(s) is/are busy or unavailable")
        assert (await first)[0] == 0
