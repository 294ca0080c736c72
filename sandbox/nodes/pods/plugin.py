"""The processes of NVIDIA's device-plugin image: plugin, config manager, GPU feature discovery, MPS control daemon.

All four run from one image; their command distinguishes them. They read the ConfigMap that their pod mounts, and
nothing else decides how many GPUs a node announces. After NVIDIA/k8s-device-plugin v0.20.0 ``cmd/``.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sandbox.nodes.gpus import plugin_config
from sandbox.nodes.gpus.features import feature_labels
from sandbox.nodes.gpus.plugin_config import CONFIG_LABEL, ConfigError, PluginConfig, Sharing, Strategy
from sandbox.nodes.host import Host, ServingPlugin
from sandbox.nodes.runtime.processes import Simulated

#: The plugin's own pause after a failed start, simulated seconds (``cmd/nvidia-device-plugin/main.go``).
RETRY_SECONDS = 30
_FEATURE_SECONDS = 2  # gpu-feature-discovery needs this long for its first labels; a guess
_FALLBACKS = "named,single"  # the chart's default


def _stamp(level: str, source: str) -> str:
    return f"{level}{datetime.now(UTC):%m%d %H:%M:%S.%f}       1 {source}]"


@dataclass
class PluginPod:
    """What the containers of one pod share: the chosen entry, and the signal that it has changed."""

    host: Host
    pod: dict[str, Any]
    managed: bool = field(init=False)
    entry: str | None = None
    hangup: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        spec = self.pod["spec"]
        containers = [*(spec.get("initContainers") or []), *spec["containers"]]
        self.managed = any(program(container) == "config-manager" for container in containers)
        env: dict[str, str] = {}
        for container in containers:
            env |= {item["name"]: str(item.get("value", "")) for item in container.get("env") or []}
        self._default = env.get("DEFAULT_CONFIG", "")
        self._fallbacks = [name for name in env.get("FALLBACK_STRATEGIES", _FALLBACKS).split(",") if name]
        mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts") or []}
        self.config_map = next(
            (
                volume["configMap"]["name"]
                for volume in spec.get("volumes") or []
                if volume["name"] in mounted and "configMap" in volume
            ),
            None,
        )

    async def entries(self) -> dict[str, str]:
        if self.config_map is None:
            return {}
        found = await self.host.kube.find("ConfigMap", self.config_map, self.pod["metadata"]["namespace"])
        return dict((found or {}).get("data") or {})

    def choose(self, entries: dict[str, str]) -> str:
        return plugin_config.choose(entries, self.host.label(CONFIG_LABEL), self._default, self._fallbacks)

    async def config(self) -> PluginConfig:
        """What the plugin's process reads at its start and after a SIGHUP.

        :raises ConfigError: when the plugin exits over it.
        """
        if self.config_map is None:
            return PluginConfig()
        entries = await self.entries()
        if not self.managed or self.entry is None:
            try:
                self.entry = self.choose(entries)
            except ConfigError as error:
                raise ConfigError(f"unable to parse config file: {error}") from error
        if self.entry and self.entry not in entries:
            # The manager's link, made when the entry was still mounted, leads nowhere (api/config/v1/config.go).
            raise ConfigError(
                "unable to parse config file: error opening config file: "
                "open /config/config.yaml: no such file or directory"
            )
        return plugin_config.parse(entries.get(self.entry, ""))


def program(container: dict[str, Any]) -> str:
    """Which of the image's programs a container runs."""
    command = container.get("command") or container.get("args") or ["nvidia-device-plugin"]
    return str(command[0]).rsplit("/", 1)[-1]


async def run_config_manager(shared: PluginPod, process: Simulated, *, oneshot: bool) -> int:
    """Init container: choose once. Sidecar: choose at every change of the node's label and hang up the plugin."""
    while True:
        changed = shared.host.labels_changed
        process.log(f"{_stamp('I', 'main.go:246')} Waiting for change to '{CONFIG_LABEL}' label")
        label = shared.host.label(CONFIG_LABEL) or ""
        process.log(f"{_stamp('I', 'main.go:248')} Label change detected: {CONFIG_LABEL}={label}")
        try:
            entry = shared.choose(await shared.entries())
        except ConfigError as error:
            process.log(f"{_stamp('E', 'main.go:161')} {error}")
            return 1
        if entry == shared.entry:
            process.log(f"{_stamp('I', 'main.go:315')} Already configured. Skipping update...")
        else:
            process.log(f"{_stamp('I', 'main.go:322')} Successfully updated to config: {entry}")
            first, shared.entry = shared.entry is None, entry
            if not oneshot and not first:
                process.log(f"{_stamp('I', 'main.go:327')} Sending signal 'hangup' to 'nvidia-device-plugin'")
                shared.hangup.set()
        if oneshot:
            return 0
        await changed.wait()


async def run_plugin(shared: PluginPod, process: Simulated) -> int:
    """Announce the node's GPUs as the configuration says, again after each hang-up."""
    host = shared.host
    process.log(f'{_stamp("I", "main.go:235")} "Starting NVIDIA Device Plugin" version="v0.20.0"')
    while True:
        shared.hangup.clear()
        process.log(f"{_stamp('I', 'main.go:317')} Loading configuration.")
        try:
            config = await shared.config()
        except ConfigError as error:
            chain = f"error starting plugins: unable to load config: unable to finalize config: {error}"
            process.log(f"{_stamp('E', 'main.go:183')} {chain}")
            return 1
        process.log(f"{_stamp('I', 'main.go:345')} Retrieving plugins.")
        if not host.gpus:
            process.log(f"{_stamp('E', 'factory.go:118')} Incompatible strategy detected auto")
            if config.fail_on_init_error:
                cause = "error getting plugins: unable to create plugins: invalid device discovery strategy"
                process.log(f"{_stamp('E', 'main.go:183')} error starting plugins: {cause}")
                return 1
            process.log(f"{_stamp('I', 'main.go:383')} No devices found. Waiting indefinitely.")
            await _hung_up(shared)
            continue
        if config.sharing.strategy is Strategy.MPS and not host.mps_healthy():
            cause = (
                "error waiting for MPS daemon: error checking MPS daemon health: failed to send command to MPS daemon"
            )
            process.log(f"{_stamp('E', 'main.go:374')} Failed to start plugin: {cause}: exit status 1")
            process.log(f"{_stamp('I', 'main.go:274')} Failed to start one or more plugins. Retrying in 30s...")
            await _hung_up(shared, host.clock.real(RETRY_SECONDS))
            continue
        if await registered(host, shared, config.sharing, process):
            await _hung_up(shared)
            process.log(f"{_stamp('I', 'main.go:304')} Received SIGHUP, restarting.")
            host.plugin_ended(process)


async def registered(host: Host, shared: ServingPlugin, sharing: Sharing, process: Simulated) -> bool:
    """Register with the kubelet after the model's latency; False when a hang-up came first."""
    late = host.fault("gpu-late")
    seconds = host.latencies.sample("plugin_register") + float((late or {}).get("seconds", 0))
    process.log(f"{_stamp('I', 'server.go:198')} Starting GRPC server for '{sharing.resource}'")
    label = f"GPU of {host.name} announced"
    waiting = asyncio.create_task(host.clock.sleep(seconds, label))
    hangup = asyncio.create_task(shared.hangup.wait())
    try:
        await asyncio.wait({waiting, hangup}, return_when=asyncio.FIRST_COMPLETED)
        while host.fault("gpu-never-registers") is not None and not shared.hangup.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(shared.hangup.wait(), host.clock.real(RETRY_SECONDS))
        if shared.hangup.is_set():
            return False
    finally:
        waiting.cancel()
        hangup.cancel()
        await asyncio.gather(waiting, hangup, return_exceptions=True)
    if host.fault("no-sharing-block") is not None:
        sharing = Sharing()
    replicas = sharing.replicas
    if (advertised := host.fault("advertise-replicas")) is not None:
        replicas = int(advertised.get("value", 1))
    host.plugin_serves(process, shared, sharing, replicas)
    process.log(f"{_stamp('I', 'server.go:142')} Starting to serve '{sharing.resource}' on {_socket(sharing)}")
    process.log(f"{_stamp('I', 'server.go:149')} Registered device plugin for '{sharing.resource}' with Kubelet")
    await host.publish_devices()
    return True


def _socket(sharing: Sharing) -> str:
    return f"/var/lib/kubelet/device-plugins/nvidia-{sharing.resource.partition('/')[2]}.sock"


async def _hung_up(shared: PluginPod, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncio.wait has it
    """Wait for the SIGHUP, or ``timeout`` real seconds."""
    with suppress(TimeoutError):
        await asyncio.wait_for(shared.hangup.wait() if _followed_elsewhere(shared) else _follow(shared), timeout)


def _followed_elsewhere(shared: PluginPod) -> bool:
    return shared.managed or shared.config_map is None


async def _follow(shared: PluginPod) -> None:
    """Without a config manager in the pod the plugin itself follows the node's label."""
    while not shared.hangup.is_set():
        changed = shared.host.labels_changed
        with suppress(ConfigError):
            if shared.choose(await shared.entries()) != shared.entry:
                shared.entry = None
                shared.hangup.set()
                return
        await changed.wait()


async def run_feature_discovery(shared: PluginPod, process: Simulated) -> int:
    """Label the node with what its GPUs are and how they are shared; again when the entry changes."""
    host = shared.host
    while True:
        changed = host.labels_changed
        shared.entry = None
        try:
            config = await shared.config()
        except ConfigError as error:
            process.log(f"{_stamp('E', 'main.go:98')} unable to load config: unable to finalize config: {error}")
            return 1
        await host.clock.sleep(_FEATURE_SECONDS)
        labels = feature_labels(host.gpus, config.sharing, host.shape.name, host.gpu_faults.driver)
        if labels:
            process.log(f"{_stamp('I', 'output.go:82')} Creating output file")
            await host.kube.patch("Node", host.name, {"metadata": {"labels": labels}})
        await changed.wait()


async def run_mps_daemon(shared: PluginPod, process: Simulated) -> int:
    """Serve while the node's configuration asks for MPS."""
    host = shared.host
    process.log(f"{_stamp('I', 'main.go:196')} Retrieving MPS daemons.")
    try:
        while not host.gpu_faults.mps_daemon_absent:
            host.mps_daemons.add(id(process))
            await host.gpu_faults_changed.wait()
    finally:
        host.mps_daemons.discard(id(process))
    process.log(f"{_stamp('E', 'main.go:84')} error starting daemons: error starting daemon: exit status 1")
    return 1
