"""The part ``apiserver``, and what the other parts and EKS learn of an API server."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from sandbox.aws.account import SYSTEM_NODES
from sandbox.aws.eks.authenticator import Authenticator, Identity
from sandbox.aws.shim import Shim
from sandbox.cloud.listening import Closers, bind
from sandbox.kube.client import Kube
from sandbox.pki import Pki
from sandbox.settings import Clock, Settings
from sandbox.state import SandboxError

_READY_TIMEOUT = 300.0  # simulated seconds for the system nodes; the model needs about 40
_USERS = {
    "controllers": "system:kube-controller-manager",
    "nodes": "system:cloud-controller-manager",
    "karpenter": "system:serviceaccount:kube-system:karpenter",
}


async def start_apiserver(
    settings: Settings, clock: Clock, shim: Shim, port: int, closers: Closers
) -> tuple[Any, Path]:
    """The API server and the administrator's kubeconfig; one for each background part lies beside it."""
    from sandbox.apiserver import serve
    from sandbox.apiserver.access.auth import User

    def user(identity: Identity) -> User:
        return User(identity.name, identity.groups, extra={"arn": (identity.arn,)})

    authenticator = Authenticator(shim.eks, shim.url, settings.region, settings.cluster_name, user)
    closers.append(("authenticator", authenticator.close))
    pki = Pki(settings.state_dir / "pki")
    servers: list[Any] = []

    async def start(chosen: int) -> None:
        servers.append(await serve(settings, pki, authenticator, port=chosen, clock=clock))

    await bind("kubernetes", start, port)
    [server] = servers

    def associated(namespace: str, account: str) -> bool:
        cluster = shim.eks.known(settings.region, settings.cluster_name)
        return cluster is not None and bool(shim.eks.list_pod_identities(cluster, namespace, account))

    server.admission.associated = associated
    closers.append(("apiserver", server.close))
    cluster = settings.cluster_name
    kubeconfig = pki.write_kubeconfig(settings.state_dir / "admin.kubeconfig", server.url, cluster=cluster)
    for part, name in _USERS.items():
        own = settings.state_dir / f"{part}.kubeconfig"
        pki.write_kubeconfig(own, server.url, name, ("system:masters",), cluster=cluster)
    publish_endpoint(settings, shim, server.url, pki.ca_data)
    return server, kubeconfig


def publish_endpoint(settings: Settings, shim: Shim, url: str, ca_data: str | None) -> None:
    """From now on EKS names this address of the cluster's API server."""
    cluster = shim.eks.cluster(settings.region, settings.cluster_name)
    cluster.endpoint, cluster.ca_data = url, ca_data


async def system_nodes_ready(kubeconfig: Path, clock: Clock) -> None:
    """Wait for the system nodes.

    :raises SandboxError: if they do not become Ready.
    """
    kube = Kube.from_kubeconfig(kubeconfig, user_agent="sandbox-cloud")
    try:
        await asyncio.wait_for(_all_ready(kube), max(30.0, clock.real(_READY_TIMEOUT)))
    except TimeoutError as error:
        raise SandboxError("the system nodes did not become Ready; see the log") from error
    finally:
        await kube.close()


async def _all_ready(kube: Kube) -> None:
    while True:
        with suppress(Exception):  # the API server is still starting, or a foreign one is slow
            ready = 0
            for node in await kube.list("Node"):
                conditions = node.get("status", {}).get("conditions") or []
                ready += any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
            if ready >= SYSTEM_NODES:
                return
        await asyncio.sleep(0.2)
