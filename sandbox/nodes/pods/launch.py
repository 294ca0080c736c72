"""Which process a container gets, by its image and command."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.nodes.gpus.plugin_config import Strategy
from sandbox.nodes.host import Host
from sandbox.nodes.pods import plugin
from sandbox.nodes.runtime.environment import expand, write_volumes
from sandbox.nodes.runtime.execution import (
    BIN,
    DRIVER_BIN,
    PYTHON,
    SAMPLES,
    Command,
    Executed,
    replace_paths,
    search_path,
)
from sandbox.nodes.runtime.processes import Process, Simulated, ends, forever
from sandbox.settings import Wait

PROBE_IMAGE = re.compile(
    r"(^|/)nvidia/cuda:|(^|/)nvidia/k8s/cuda-sample:|(^|/)nvidia/cloud-native/dcgm:|(^|/)(library/)?python:"
)
PYTHON_IMAGE = re.compile(r"(^|/)(library/)?python:")
DCGM_IMAGE = "nvidia/cloud-native/dcgm:"
PLUGIN_IMAGE = "k8s-device-plugin"
KARPENTER_IMAGE = "karpenter/controller"
TERMINATION_LOG = "/dev/termination-log"
_PRUNE = re.compile(r"^--?prune$")
_SHELL_LINE = re.compile(r"^\s*(exit|sleep)\s+([0-9.]+)\s*;?\s*$")
_PRUNE_SECONDS = 2.0  # nfd-master -prune lists and patches the nodes once; a guess


@dataclass
class Start:
    """
    All that a start of a container needs.

    :ivar env: resolved environment of its manifest.
    :ivar folder: of this container; private.
    :ivar shared: what the containers of a device-plugin pod share.
    """

    host: Host
    pod: dict[str, Any]
    container: dict[str, Any]
    env: dict[str, str]
    folder: Path
    shared: plugin.PluginPod | None = None

    @property
    def termination_log(self) -> Path:
        return self.folder / "termination-log"


def is_probe(container: dict[str, Any]) -> bool:
    return PROBE_IMAGE.search(container["image"]) is not None


async def launch(start: Start) -> Process:
    """Start the container's process."""
    container, image = start.container, start.container["image"]
    if is_probe(container):
        return await _execute(start)
    if PLUGIN_IMAGE in image and start.shared is not None:
        return _plugin_process(start, start.shared)
    words = [
        expand(str(word), start.env) for word in [*(container.get("command") or []), *(container.get("args") or [])]
    ]
    return _simulate(start, words)


def _simulate(start: Start, words: list[str]) -> Process:
    clock = start.host.clock
    if any(_PRUNE.match(word) for word in words):
        return Simulated(ends(clock.real(_PRUNE_SECONDS), 0))
    shell = len(words) == 3 and words[0].rsplit("/", 1)[-1] in ("sh", "bash") and words[1] == "-c"
    if shell and (match := _SHELL_LINE.match(words[2])):
        words = [match[1], match[2]]
    program = words[0].rsplit("/", 1)[-1] if words else ""
    if program in ("true", "false"):
        return Simulated(ends(0.0, 0 if program == "true" else 1))
    if program == "exit" and len(words) == 2:
        return Simulated(ends(0.0, int(float(words[1]))))
    if program == "sleep" and len(words) == 2:
        try:
            # PID 1 without a handler: sleep ignores SIGTERM, so its pod takes its whole grace period.
            return Simulated(ends(clock.real(float(words[1].rstrip("s"))), 0))
        except ValueError:
            return Simulated(forever)
    return Simulated(forever, stopping=start.host.handle_sigterm)


def _plugin_process(start: Start, shared: plugin.PluginPod) -> Process:
    host, name = start.host, plugin.program(start.container)
    stopping = host.handle_sigterm
    if name == "config-manager":
        oneshot = start.env.get("ONESHOT", "false").lower() == "true"
        return Simulated(lambda it: plugin.run_config_manager(shared, it, oneshot=oneshot), stopping=stopping)
    if name == "gpu-feature-discovery":
        return Simulated(lambda it: plugin.run_feature_discovery(shared, it), stopping=stopping)
    if name == "mps-control-daemon":
        if start.container.get("args", [""])[:1] == ["mount-shm"] or "mount-shm" in (
            start.container.get("command") or []
        ):
            return Simulated(ends(0.0, 0))
        return Simulated(lambda it: plugin.run_mps_daemon(shared, it), stopping=stopping)
    if name == "nvidia-device-plugin":
        process = Simulated(
            lambda it: plugin.run_plugin(shared, it), stopping=stopping, on_end=lambda: host.plugin_ended(process)
        )
        return process
    return Simulated(forever, stopping=stopping)


def _default_command(image: str) -> list[str]:
    """What the image runs without a command of the pod's."""
    return ["./vectorAdd"] if "vectoradd" in image else ["/bin/bash"]


async def _execute(start: Start) -> Process:
    host, container = start.host, start.container
    scratch = start.folder / "work"
    samples = start.folder / "cuda-samples"
    for folder in (scratch, samples, start.folder / "tmp"):
        folder.mkdir(parents=True, exist_ok=True)
    for place in (samples, scratch):
        link = place / "vectorAdd"
        if not link.exists() and "cuda-sample" in container["image"]:
            link.symlink_to(BIN / "vectorAdd")
    start.termination_log.touch()
    claims = host.context.folder / "claims"
    paths = await write_volumes(host.kube, start.pod, container, start.folder / "volumes", claims)
    paths |= {
        container.get("terminationMessagePath") or TERMINATION_LOG: str(start.termination_log),
        SAMPLES: str(samples),
    }
    visible = ",".join(_visible_gpus(start))
    if not visible and host.gpus:
        # The NVIDIA runtime trusts the variable, whether a manifest or the image sets it, as CUDA's do
        # (nvidia-container-toolkit, accept-nvidia-visible-devices-envvar-when-unprivileged, true by default).
        of_image = "" if PYTHON_IMAGE.search(container["image"]) else "all"
        visible = start.env.get("NVIDIA_VISIBLE_DEVICES", of_image)
        visible = "" if visible in ("void", "none") else visible
    env = {
        "HOME": str(scratch),
        "TMPDIR": str(start.folder / "tmp"),
        "HOSTNAME": start.pod["metadata"]["name"],
        "LANG": "C.UTF-8",
        **{name: replace_paths(value, paths) for name, value in start.env.items()},
        "PATH": search_path(sees_gpu=bool(visible), dcgm=DCGM_IMAGE in container["image"]),
        "NVIDIA_VISIBLE_DEVICES": visible or "void",
        "SANDBOX_SPEED": str(host.clock.speed),
        "SANDBOX_GPU_TABLE": str(host.gpu_table()),
        "SANDBOX_GPU_USE": str(host.folder / "gpu-use"),
        # `sleep` divides by the speed, so this is in simulated seconds.
        "SANDBOX_VECTORADD_SECONDS": f"{host.latencies.sample('vectoradd'):.3f}",
        **_shares(start),
    }
    if PYTHON_IMAGE.search(container["image"]):
        env["PYTHONPATH"] = str(BIN / "libcuda")
    words = [*(container.get("command") or []), *(container.get("args") or [])]
    if not container.get("command"):
        default = _default_command(container["image"])
        words = [*default, *(container.get("args") or [])]
    argv = [replace_paths(expand(str(word), start.env), paths) for word in words]
    if argv[0] == "./vectorAdd":
        argv[0] = str(BIN / "vectorAdd")
    elif argv[0].rsplit("/", 1)[-1] in ("python3", "python"):
        argv[0] = PYTHON
    elif argv[0].rsplit("/", 1)[-1] in ("dcgmi", "nv-hostengine") and DCGM_IMAGE in container["image"]:
        argv[0] = str(BIN / "dcgm" / argv[0].rsplit("/", 1)[-1])
    elif "/" not in argv[0] and (BIN / argv[0]).is_file():
        argv[0] = str(BIN / argv[0])
    elif argv[0] == "nvidia-smi" and visible:
        argv[0] = str(DRIVER_BIN / "nvidia-smi")
    workdir = container.get("workingDir")
    cwd = samples if workdir and workdir.startswith(SAMPLES) else scratch
    return _Recorded(Command(argv, env, cwd), start)


def _visible_gpus(start: Start) -> list[str]:
    """UUIDs of the GPUs that the container got; with the fault ``split-sharers`` every second sharer sees another."""
    host, uid = start.host, start.pod["metadata"]["uid"]
    gpus = host.devices.visible_gpus(uid, start.container["name"])
    phantom = host.gpu_faults.phantom
    if phantom is None:
        return gpus
    return [phantom.uuid if host.devices.holders(gpu).index(uid) % 2 else gpu for gpu in gpus]


def _shares(start: Start) -> dict[str, str]:
    """How a container shares its GPU, for ``bin/libcuda`` and ``nvidia-smi``.

    An MPS client gets the pipe of its daemon as the device plugin sets it (``internal/plugin/mps.go``).
    """
    host, uid = start.host, start.pod["metadata"]["uid"]
    env: dict[str, str] = {}
    gpus = host.devices.visible_gpus(uid, start.container["name"])
    sharing = host.devices.sharing()
    if gpus and sharing.strategy is Strategy.MPS:
        env["CUDA_MPS_PIPE_DIRECTORY"] = f"/mps/{sharing.resource}/pipe"
        env["SANDBOX_MPS_REPLICAS"] = str(sharing.replicas)
        env["SANDBOX_MPS_DAEMON"] = str(int(bool(host.mps_daemons)))
    share = host.gpu_faults.share
    if share is not None and any(host.devices.holders(gpu)[0] == uid for gpu in gpus):
        env["SANDBOX_GPU_SHARE"] = str(share)
    return env


class _Recorded(Executed):
    """An executed probe whose run time counts as an injected wait."""

    def __init__(self, command: Command, start: Start) -> None:
        self._label = f"{start.pod['metadata']['name']} runs"
        self._waits = start.host.clock.waits
        self._began = time.time()
        super().__init__(command)

    def finish(self, code: int) -> None:
        if not self.ended:
            self._waits.append(Wait(self._label, self._began, time.time()))
        super().finish(code)


def container_id(pod_uid: str, name: str, restarts: int) -> str:
    digest = hashlib.sha256(f"{pod_uid}/{name}/{restarts}".encode()).hexdigest()
    return f"containerd://{digest}"
