"""What all nodes of the cluster share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sandbox.kube.client import Kube
from sandbox.kube.recorder import Recorder
from sandbox.latency import Latencies
from sandbox.nodes.identity import Identity
from sandbox.nodes.runtime.logs import LogUploader
from sandbox.settings import Clock, Settings


@dataclass(frozen=True)
class Context:
    """
    :ivar kube: a client that retries; kubelets outlive an API server that restarts.
    :ivar recorder: of the kubelets' events.
    :ivar folder: scratch files of all nodes.
    """

    settings: Settings
    clock: Clock
    kube: Kube
    latencies: Latencies
    recorder: Recorder
    logs: LogUploader
    identity: Identity
    folder: Path
