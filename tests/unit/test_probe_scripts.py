"""The probe script, run by the machine's real ``sh`` with fake ``nvidia-smi`` and ``vectorAdd`` on a private PATH."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from gpu_fleet.core.probes.gpu import MESSAGE_LIMIT, ProbeOutputError, parse_output

SCRIPT = Path(__file__).resolve().parents[2] / "include" / "probes" / "gpu.sh"
UUIDS = [f"GPU-{index:08x}-1111-2222-3333-444444444444" for index in range(16)]

#: what an image based on Ubuntu or BusyBox has; nothing else of this machine is reachable
TOOLS = ("date", "sleep", "tr", "cut", "sed", "cat", "sh")


def shells() -> list[list[str]]:
    """Every POSIX shell of this machine that the script can be tried with."""
    found = [[path] for name in ("dash", "sh") if (path := shutil.which(name))]
    if bash := shutil.which("bash"):
        found.append([bash, "--posix"])
    if busybox := shutil.which("busybox"):
        found.append([busybox, "sh"])
    return found


class Container:
    """A folder that stands for the container: PATH with chosen programs, and the termination message's file."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.bin.mkdir()
        self.log = root / "termination-log"
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.skip(f"{tool} is missing"))

    def program(self, name: str, body: str) -> Path:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    def nvidia_smi(self, lines: list[str], banner: str = "| CUDA Version: 12.8  |") -> None:
        listing = "\n".join(lines)
        self.program(
            "nvidia-smi", f'case "${{1:-}}" in\n--query-gpu=*) cat <<X\n{listing}\nX\n;;\n*) echo "{banner}" ;;\nesac'
        )

    def start(self, shell: list[str], hold: str = "0", *vector_add: str, **env: str) -> subprocess.Popen[bytes]:
        text = SCRIPT.read_text().replace("/dev/termination-log", str(self.log))
        return subprocess.Popen(
            [*shell, "-c", text, "gpu", hold, *(vector_add or ("-",))],
            env={"PATH": str(self.bin), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(
        self, hold: str = "0", vector_add: str = "-", shell: list[str] | None = None, **env: str
    ) -> tuple[int, str]:
        process = self.start(shell or ["/bin/sh"], hold, vector_add, **env)
        _, errors = process.communicate(timeout=30)
        assert errors == b""
        return process.returncode, self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def line(uuid: str, free: str = "20000") -> str:
    return f"{uuid}, NVIDIA A10G, 23028, {free}, 570.133.20"


@pytest.mark.parametrize("shell", shells(), ids=lambda shell: Path(shell[0]).name)
def test_one_gpu_with_a_passing_vector_add(container: Container, shell: list[str]) -> None:
    container.nvidia_smi([line(UUIDS[0])])
    program = container.program("vectorAdd", 'echo "[Vector addition of 50000 elements]"; echo "Test PASSED"')
    status, message = container.run(vector_add=str(program), shell=shell)
    assert status == 0
    output = parse_output(message)
    assert [gpu.uuid for gpu in output.gpus] == [UUIDS[0]]
    assert (output.gpus[0].memory_total_mib, output.gpus[0].memory_free_mib) == (23028, 20000)
    assert output.driver == "570.133.20"
    assert output.cuda == "12.8"
    assert output.vector_add is not None
    assert output.vector_add.passed
    assert output.error is None
    assert output.finished_at >= output.started_at


def test_sixteen_gpus_fit_into_the_termination_message(container: Container) -> None:
    container.nvidia_smi([line(uuid) for uuid in UUIDS])
    program = container.program("vectorAdd", 'echo "Test PASSED ' + "x" * 3000 + '"')
    status, message = container.run(vector_add=str(program))
    assert status == 0
    assert len(message.encode()) <= MESSAGE_LIMIT
    assert len(parse_output(message).gpus) == 16


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('echo "Test FAILED"; exit 1', "wrong result"),
        ('echo "Test PASSED"; exit 3', "passed in words only"),
        ('echo "Failed to allocate device vector A (error code no CUDA-capable device)!" >&2; exit 1', "CUDA"),
        ("exit 0", "said nothing"),
    ],
)
def test_vector_add_that_does_not_pass(container: Container, body: str, why: str) -> None:
    container.nvidia_smi([line(UUIDS[0])])
    status, message = container.run(vector_add=str(container.program("vectorAdd", body)))
    assert status == 1
    output = parse_output(message)
    assert output.error is not None
    assert output.error.reason == "VectorAddFailed"
    assert output.vector_add is not None
    assert not output.vector_add.passed


@pytest.mark.parametrize("shell", shells(), ids=lambda shell: Path(shell[0]).name)
def test_vector_add_gets_its_arguments_as_they_stand(container: Container, shell: list[str]) -> None:
    container.nvidia_smi([line(UUIDS[0])])
    program = container.program("vectorAdd", 'printf "%s," "$#" "$@"; echo "Test PASSED"')
    process = container.start(shell, "0", str(program), "--device", "a b", "(x)")
    assert process.communicate(timeout=30)[1] == b""
    output = parse_output(container.log.read_text())
    assert output.vector_add is not None
    assert output.vector_add.output.startswith("3,--device,a b,(x),Test PASSED")


def test_vector_add_is_not_in_the_image(container: Container) -> None:
    container.nvidia_smi([line(UUIDS[0])])
    status, message = container.run(vector_add="/nowhere/vectorAdd")
    assert status == 2
    error = parse_output(message).error
    assert error is not None
    assert error.reason == "NoVectorAdd"


def test_nvidia_smi_is_not_in_the_container(container: Container) -> None:
    status, message = container.run()
    assert status == 1
    error = parse_output(message).error
    assert error is not None
    assert error.reason == "NoNvidiaSmi"


def test_the_driver_does_not_answer(container: Container) -> None:
    text = 'NVIDIA-SMI has failed because it couldn\'t communicate with the "NVIDIA" driver.\\nMake sure'
    container.program("nvidia-smi", f"printf '%b' '{text.replace(chr(39), '')}'; exit 9")
    status, message = container.run()
    assert status == 1
    error = parse_output(message).error
    assert error is not None
    assert error.reason == "NvidiaSmiFailed"
    assert "NVIDIA driver" in error.message  # quotes and line breaks are gone, the JSON stays valid


def test_no_gpu_is_visible(container: Container) -> None:
    container.nvidia_smi([])
    status, message = container.run()
    assert status == 1
    error = parse_output(message).error
    assert error is not None
    assert error.reason == "NoGpuVisible"


def test_figures_that_nvidia_smi_does_not_support_are_null(container: Container) -> None:
    container.nvidia_smi([f"{UUIDS[0]}, NVIDIA A10G, [N/A], [Not Supported], 570.1"], banner="no banner")
    _, message = container.run()
    output = parse_output(message)
    assert output.gpus[0].memory_total_mib is None
    assert output.gpus[0].memory_free_mib is None
    assert output.cuda == ""


def test_a_name_that_would_break_json_is_made_plain(container: Container) -> None:
    container.nvidia_smi([f'{UUIDS[0]}, NVIDIA "A10G" \\ {{}}, 1, 1, 570.1'])
    _, message = container.run()
    assert parse_output(message).gpus[0].name.split() == ["NVIDIA", "A10G"]


def test_date_without_nanoseconds_falls_back_to_seconds(container: Container) -> None:
    container.nvidia_smi([line(UUIDS[0])])
    container.program("date", 'case "$1" in *%N) echo 1790000000N ;; *) echo 1790000000 ;; esac')
    _, message = container.run()
    assert parse_output(message).started_at == 1790000000.0


@pytest.mark.parametrize("hold", ["", "abc", "-1", "1.5"])
def test_a_hold_that_is_no_whole_number_does_not_hold(container: Container, hold: str) -> None:
    container.nvidia_smi([line(UUIDS[0])])
    container.program("sleep", "exit 77")
    status, _ = container.run(hold=hold)
    assert status == 0


def test_the_gpu_is_held_as_long_as_asked(container: Container, tmp_path: Path) -> None:
    container.nvidia_smi([line(UUIDS[0])])
    container.program("sleep", f'echo "$1" > {tmp_path}/slept')
    status, message = container.run(hold="20")
    assert status == 0
    assert (tmp_path / "slept").read_text() == "20\n"
    assert parse_output(message).error is None


def test_told_to_stop_while_holding(container: Container, tmp_path: Path) -> None:
    container.nvidia_smi([line(UUIDS[0])])
    asleep = tmp_path / "asleep"
    container.program("sleep", f': >"{asleep}"; exec {shutil.which("sleep")} "$1"')
    process = container.start(["/bin/sh"], hold="60")
    until = time.monotonic() + 20
    while not asleep.exists() and time.monotonic() < until:  # until the script holds the GPU
        time.sleep(0.02)
    time.sleep(0.1)  # and has noted whom to end
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 2
    error = parse_output(container.log.read_text()).error
    assert error is not None
    assert error.reason == "Interrupted"


def test_an_empty_termination_message_is_refused() -> None:
    with pytest.raises(ProbeOutputError, match="no termination message"):
        parse_output("")


@pytest.mark.parametrize("shell", shells(), ids=" ".join)
@pytest.mark.parametrize(("free", "runs"), [("599", False), ("600", True), ("[N/A]", True)])
def test_no_cuda_context_is_made_where_too_little_memory_is_free(
    container: Container, tmp_path: Path, shell: list[str], free: str, runs: bool
) -> None:
    container.nvidia_smi([f"{UUIDS[0]}, NVIDIA A10G, 23028, {free}, 570.133.20"])
    ran = tmp_path / "ran"
    vector_add = container.program("vectorAdd", f': >"{ran}"; echo Test PASSED')
    code, text = container.run("0", str(vector_add), shell, LEAST_FREE_MIB="600")
    output = parse_output(text)
    assert (code, ran.exists()) == (0 if runs else 1, runs)
    if not runs:
        assert output.error is not None
        assert output.error.reason == "LittleMemoryFree"
        assert f"599 MiB of GPU {UUIDS[0]} are free" in output.error.message
        assert container.run("0", "-", shell, LEAST_FREE_MIB="600")[0] == 0, "without CUDA nothing is taken"
