"""The fake binaries, run as a probe container runs them."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from sandbox.aws.shapes import Shape
from sandbox.nodes.gpus.physical import gpus_of
from sandbox.nodes.runtime.execution import Command, Executed, replace_paths, search_path
from sandbox.nodes.runtime.processes import SIGKILL_CODE

_SHAPE = Shape("g5.12xlarge", 48, 1000, 10, "amd64", 2, "A10G", 22888, ("on-demand",), "nitro", 0)
GPUS = gpus_of("i-1", _SHAPE)


@pytest.fixture
def env(tmp_path):
    table = tmp_path / "gpus.tsv"
    table.write_text("".join(gpu.row() + "\n" for gpu in GPUS))
    return {
        "PATH": search_path(sees_gpu=True),
        "NVIDIA_VISIBLE_DEVICES": GPUS[1].uuid,
        "SANDBOX_GPU_TABLE": str(table),
        "SANDBOX_GPU_USE": str(tmp_path / "use"),
        "SANDBOX_SPEED": "50",
        "SANDBOX_VECTORADD_SECONDS": "5",
    }


async def _run(script, env, tmp_path):
    process = Executed(Command(["sh", "-c", script], env, tmp_path))
    return await process.wait(), process.output()


async def test_only_the_assigned_gpu_is_listed(env, tmp_path):
    assert await _run("nvidia-smi -L", env, tmp_path) == (0, f"GPU 0: NVIDIA A10G (UUID: {GPUS[1].uuid})\n")


async def test_all_gpus_are_listed(env, tmp_path):
    code, text = await _run("nvidia-smi -L", env | {"NVIDIA_VISIBLE_DEVICES": "all"}, tmp_path)
    assert (code, text.count("UUID")) == (0, 2)


async def test_query_without_header_and_units(env, tmp_path):
    fields = "index,uuid,name,driver_version,memory.total,memory.used,memory.free,compute_cap"
    code, text = await _run(f"nvidia-smi --query-gpu={fields} --format=csv,noheader,nounits", env, tmp_path)
    assert (code, text) == (0, f"0, {GPUS[1].uuid}, NVIDIA A10G, 580.95.05, 23028, 0, 23028, 8.6\n")


async def test_query_with_header_and_units(env, tmp_path):
    code, text = await _run("nvidia-smi --query-gpu=uuid,memory.total --format=csv", env, tmp_path)
    assert (code, text) == (0, f"uuid, memory.total [MiB]\n{GPUS[1].uuid}, 23028 MiB\n")


async def test_a_field_that_does_not_exist(env, tmp_path):
    code, text = await _run("nvidia-smi --query-gpu=nonsense --format=csv,noheader", env, tmp_path)
    assert code == 2
    assert 'Field "nonsense" is not a valid field to query.' in text


async def test_vector_add_passes_and_is_seen_as_a_process(env, tmp_path):
    apps = "nvidia-smi --query-compute-apps=gpu_uuid,process_name,used_memory --format=csv,noheader"
    code, text = await _run(f"vectorAdd > out & sleep 2; {apps}; wait; tail -2 out; {apps}", env, tmp_path)
    assert code == 0
    assert text == f"{GPUS[1].uuid}, /cuda-samples/vectorAdd, 254 MiB\nTest PASSED\nDone\n"


@pytest.mark.parametrize("visible", ["", "void", "none"])
async def test_vector_add_without_a_gpu_fails(env, tmp_path, visible):
    code, text = await _run("vectorAdd", env | {"NVIDIA_VISIBLE_DEVICES": visible}, tmp_path)
    assert code == 1
    assert "no CUDA-capable device is detected" in text
    assert "PASSED" not in text


async def test_no_driver_no_nvidia_smi(env, tmp_path):
    code, _ = await _run("nvidia-smi", env | {"PATH": search_path(sees_gpu=False)}, tmp_path)
    assert code == 127


async def test_sleep_follows_the_speed_and_understands_units(env, tmp_path):
    began = time.monotonic()
    code, _ = await _run("sleep 5 && sleep 0.1m", env, tmp_path)
    assert code == 0
    assert time.monotonic() - began < 5


async def test_sleep_of_nothing_sensible_fails(env, tmp_path):
    assert (await _run("sleep soon", env, tmp_path))[0] == 1


async def _written(path):
    async with asyncio.timeout(10):
        while not path.exists() or not path.read_text().strip():  # noqa: ASYNC110 - a file cannot be awaited
            await asyncio.sleep(0.01)
    return path.read_text().strip()


async def test_stopping_ends_the_whole_group(env, tmp_path):
    process = Executed(Command(["sh", "-c", "sleep 100000 & echo $! > child; wait"], env, tmp_path))
    child = Path("/proc") / await _written(tmp_path / "child")
    await process.stop(0.2)
    assert await process.wait() != 0
    for _ in range(100):
        try:
            if "State:\tZ" in (child / "status").read_text():
                break
        except OSError:  # gone, before its file was opened or after
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail("the child of the stopped process lives on")


async def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(env, tmp_path):
    script = "trap '' TERM; echo yes > ready; while :; do sleep 1; done"
    process = Executed(Command(["sh", "-c", script], env, tmp_path))
    await _written(tmp_path / "ready")
    await process.stop(0.1)
    assert await process.wait() == SIGKILL_CODE


async def test_a_command_that_is_not_in_the_image(env, tmp_path):
    process = Executed(Command(["no-such-program"], env, tmp_path))
    assert await process.wait() == 127


def test_longer_paths_are_replaced_first():
    paths = {"/dev": "/private/dev", "/dev/termination-log": "/private/log"}
    assert replace_paths("echo x > /dev/termination-log", paths) == "echo x > /private/log"


async def test_the_summary_names_driver_and_cuda(env, tmp_path):
    code, text = await _run("nvidia-smi", env, tmp_path)
    assert (code, text.splitlines()[0]) == (
        0,
        "NVIDIA-SMI 580.95.05    Driver Version: 580.95.05    CUDA Version: 13.0",
    )


async def test_under_mps_a_gpu_belongs_to_one_process(env, tmp_path):
    query = "nvidia-smi --query-gpu=compute_mode --format=csv,noheader"
    assert await _run(query, env, tmp_path) == (0, "Default\n")
    assert await _run(query, env | {"SANDBOX_MPS_REPLICAS": "4"}, tmp_path) == (0, "Exclusive_Process\n")


class TestDcgm:
    """The stand-ins of the DCGM image."""

    @pytest.fixture
    def env(self, env, tmp_path):
        return env | {"PATH": search_path(sees_gpu=True, dcgm=True), "TMPDIR": str(tmp_path), "SANDBOX_SPEED": "5000"}

    async def test_without_its_host_engine_dcgmi_fails(self, env, tmp_path):
        code, text = await _run("dcgmi diag -r 1 -j", env, tmp_path)
        assert code == 245
        assert "Unable to connect to host engine" in text

    @pytest.mark.parametrize(
        ("level", "tests"),
        [
            (1, ["software"]),
            (2, ["software", "pcie", "memory"]),
            (3, ["software", "pcie", "memory", "diagnostic", "memory_bandwidth", "targeted_stress"]),
        ],
    )
    async def test_levels_of_diagnostics(self, env, tmp_path, level, tests):
        all_gpus = env | {"NVIDIA_VISIBLE_DEVICES": "all"}
        code, text = await _run(f"nv-hostengine >/dev/null && dcgmi diag -r {level} -j", all_gpus, tmp_path)
        report = json.loads(text)
        found = [test for group in report["DCGM Diagnostic"]["test_categories"] for test in group["tests"]]
        assert code == 0
        assert [test["name"] for test in found] == tests
        assert {result["status"] for test in found for result in test["results"]} == {"Pass"}
        assert [result["entity_id"] for result in found[0]["results"]] == [0, 1]
        assert report["metadata"] == {"Driver Version Detected": "580.95.05", "version": "4.2.3"}

    async def test_a_gpu_that_is_lost_is_not_diagnosed(self, env, tmp_path):
        gone = env | {"NVIDIA_VISIBLE_DEVICES": "GPU-00000000-0000-0000-0000-000000000000"}
        code, text = await _run("nv-hostengine >/dev/null && dcgmi diag -r 1", gone, tmp_path)
        assert code == 226
        assert "No GPUs found" in text
