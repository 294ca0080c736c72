"""The device plugin that is part of an AMI: a service of the host, without a pod and without a ConfigMap.

Bottlerocket's NVIDIA variants have one (bottlerocket-os/bottlerocket-core-kit ``packages/nvidia-k8s-device-plugin``);
it is NVIDIA's program, configured by the settings in the user data.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from sandbox.nodes.gpus.plugin_config import Sharing
from sandbox.nodes.host import Host
from sandbox.nodes.pods.plugin import registered
from sandbox.nodes.runtime.processes import Simulated


@dataclass
class BuiltInPlugin:
    """:ivar hangup: set to make it start again."""

    hangup: asyncio.Event = field(default_factory=asyncio.Event)


def start(host: Host, sharing: Sharing) -> Simulated:
    """Serve the host's GPUs until the machine is switched off."""
    plugin = BuiltInPlugin()

    async def main(process: Simulated) -> int:
        while True:
            plugin.hangup.clear()
            if await registered(host, plugin, sharing, process):
                await plugin.hangup.wait()
                host.plugin_ended(process)

    return Simulated(main)
