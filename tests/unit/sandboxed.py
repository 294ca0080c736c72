"""A sandbox in a background thread, for synchronous tests of hooks, operators and triggers."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpu_fleet.core.kubernetes.kinds import CRD, ObjectRef
from gpu_fleet.hooks.aws import forget_sessions
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook, close_clients
from sandbox.apiserver import running
from sandbox.audit import AuditLog
from sandbox.cloud.cloud import Cloud
from sandbox.cloud.options import Options
from sandbox.faults import FaultBoard
from sandbox.settings import Settings

KARPENTER_CRDS = Path(__file__).resolve().parents[2] / "sandbox" / "charts" / "karpenter-crd" / "templates"


def only_connections(environment: pytest.MonkeyPatch, **connections: str) -> None:
    """No credentials for AWS but those of these Airflow connections.

    :param connections: connection id -> the connection as JSON.
    """
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        environment.delenv(name, raising=False)
    environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, connection in connections.items():
        environment.setenv(f"AIRFLOW_CONN_{name.upper()}", connection)


@contextmanager
def background_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="sandbox", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        _wait(loop, _close_connections(loop))
        _wait(loop, _end_tasks())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _wait(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(work, loop).result(timeout=60)


async def _close_connections(loop: asyncio.AbstractEventLoop) -> None:
    """Ends TLS connections that still wait for the other side's goodbye: a stopped loop would leave them open.

    Again and again for a while, since what is just ending may open one more.
    """
    patience = loop.time() + 5
    await asyncio.sleep(0.05)
    while open_ones := [each for each in list(loop._transports.values()) if each._sock is not None]:  # type: ignore[attr-defined]
        for transport in open_ones:
            transport.abort()
        if loop.time() > patience:
            break
        await asyncio.sleep(0.05)


async def _end_tasks() -> None:
    """Ends what a part has left running: a kubelet's five minutes' grace for a plugin that went with its machine."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


@dataclass(frozen=True)
class SandboxCluster:
    """An API server without controllers."""

    access: ClusterAccess
    kube: KubeClient
    faults: FaultBoard
    state_dir: Path

    def access_for(self, user: str) -> ClusterAccess:
        """The same cluster as somebody without any permission."""
        from sandbox.pki import Pki

        server = json.loads((self.state_dir / "admin.kubeconfig").read_text())["clusters"][0]["cluster"]["server"]
        path = Pki(self.state_dir / "pki").write_kubeconfig(self.state_dir / f"{user}.kubeconfig", server, user, ())
        return ClusterAccess("kubeconfig", None, None, None, path=str(path))

    def fail_requests(self, **rule: Any) -> None:
        self.faults.set("request-faults", {"rules": [rule]})


def define(kube: KubeClient, *documents: dict[str, Any]) -> None:
    """Create CustomResourceDefinitions, and wait until what they define is served."""
    refs = [ObjectRef(CRD, document["metadata"]["name"]) for document in documents]
    for document in documents:
        kube.apply(document)
    deadline = time.monotonic() + 20
    while not all(established(kube.get(ref)) for ref in refs):
        assert time.monotonic() < deadline, f"never established: {refs}"
        time.sleep(0.02)


def established(definition: dict[str, Any] | None) -> bool:
    conditions = ((definition or {}).get("status") or {}).get("conditions") or []
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)


def define_karpenter(kube: KubeClient, *names: str) -> None:
    """Karpenter's definitions: those of the named files of its chart, or all."""
    paths = [KARPENTER_CRDS / name for name in names] or sorted(KARPENTER_CRDS.glob("*.yaml"))
    define(kube, *(document for path in paths for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))))


@contextmanager
def sandbox_cluster(state_dir: Path) -> Iterator[SandboxCluster]:
    """An API server of the sandbox, reached by a client certificate."""
    with background_loop() as loop:
        manager = running(state_dir)
        cluster = _wait(loop, manager.__aenter__())
        try:
            access = ClusterAccess("kubeconfig", None, None, None, path=str(cluster.kubeconfig))
            kube = KubernetesHook(access).client()
            yield SandboxCluster(access, kube, cluster.settings.faults, state_dir)
        finally:
            # An open connection of ours would keep the server's side of it waiting for our goodbye.
            close_clients()
            _wait(loop, manager.__aexit__(None, None, None))


@dataclass(frozen=True)
class SandboxCloud:
    """AWS with one EKS cluster and its API server.

    :ivar connection: the Airflow connection of the account, as JSON for ``AIRFLOW_CONN_…``.
    :ivar kubeconfig: of the cluster's administrator.
    :ivar add_node: instance type, node group, labels, taints -> instance id; see ``sandbox.aws.nodegroups``.
    """

    settings: Settings
    connection: str
    endpoint_url: str
    kubeconfig: Path
    add_node: Callable[[str, str, dict[str, str], list[str]], str]


@contextmanager
def sandbox_cloud(state_dir: Path, *parts: str, speed: float = 50.0) -> Iterator[SandboxCloud]:
    """The sandbox's AWS and API server; controllers, nodes and Karpenter only if they are named in ``parts``."""
    settings = Settings(state_dir=state_dir, speed=speed)
    with background_loop() as loop:

        async def start() -> Cloud:
            options = Options(parts=frozenset({"aws", "apiserver", *parts}))
            cloud = Cloud(settings, options, lambda text: None)
            await cloud.start()
            await cloud.wait_ready()
            return cloud

        cloud = _wait(loop, start())
        try:
            account, url = cloud.aws.account, cloud.aws.shim.url
            connection = {
                "conn_type": "aws",
                "login": account.access_key_id,
                "password": account.secret_access_key,
                "extra": {"region_name": settings.region, "endpoint_url": url},
            }
            yield SandboxCloud(
                settings,
                json.dumps(connection),
                url,
                state_dir / "admin.kubeconfig",
                lambda *node: str(_wait(loop, cloud.add_node(*node))),
            )
        finally:
            close_clients()
            forget_sessions()
            _wait(loop, cloud.close())


@contextmanager
def whole_sandbox(state_dir: Path, *, speed: float = 60.0, audit: AuditLog | None = None) -> Iterator[dict[str, str]]:
    """Every part of the sandbox, in a thread: AWS, API server, charts, controllers, nodes, Karpenter.

    :param audit: where every write is logged; in memory by default.
    :returns: the environment in which operators reach it.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    settings = Settings(state_dir=state_dir, speed=speed, audit=audit or AuditLog())
    with background_loop() as loop:

        async def start() -> Cloud:
            cloud = Cloud(settings, Options(), lambda text: None)
            await cloud.start()
            await cloud.wait_ready()
            return cloud

        cloud = _wait(loop, start())
        try:
            yield cloud.environment()
        finally:
            close_clients()
            forget_sessions()
            _wait(loop, cloud.close())
            _wait(loop, _end_tasks())
