"""The whole small cloud in one process: starts the parts, connects them by their addresses, and ends them.

Order of start: AWS (moto, account, shim) → API server → chart repository and control API → controllers, nodes,
Karpenter. Parts know each other only through HTTP; what they are handed here are addresses and credentials.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sandbox import chartrepo, state
from sandbox.audit import AuditLog
from sandbox.aws import account as accounts
from sandbox.aws import moto as moto_server
from sandbox.aws import nodegroups
from sandbox.aws.client import Aws
from sandbox.aws.eks.authenticator import Authenticator, Identity
from sandbox.aws.eks.clusters import admit_creator
from sandbox.aws.interruptions import Interruptions, Kind
from sandbox.aws.shim import Shim
from sandbox.control import ControlApi
from sandbox.doors import Door
from sandbox.faults import FaultBoard
from sandbox.foreign import find_server
from sandbox.kube.client import Kube
from sandbox.options import BACKGROUND, Options
from sandbox.parts import Part, Stoppable
from sandbox.pki import Pki
from sandbox.settings import Clock, Settings
from sandbox.state import SandboxError

_READY_TIMEOUT = 300.0  # simulated seconds for the system nodes; the model needs about 40
_USERS = {
    "controllers": "system:kube-controller-manager",
    "nodes": "system:cloud-controller-manager",
    "karpenter": "system:serviceaccount:kube-system:karpenter",
}

Say = Callable[[str], None]


class Cloud:
    """:meth:`start`, then :meth:`close`. ``broken`` is set to a message when a part has failed for good."""

    def __init__(self, settings: Settings, options: Options, say: Say) -> None:
        self.settings = settings
        self.options = options
        self.clock = Clock(settings.speed, settings.seed)
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.phase = "starting"
        self._say = say
        self._parts: dict[str, Part] = {}
        self._doors: dict[str, Door] = {}
        self._closers: list[tuple[str, Callable[[], Any]]] = []
        self._moto: moto_server.Moto | None = None
        self._shim: Shim | None = None
        self._account: accounts.Account | None = None
        self._aws: Aws | None = None
        self._interruptions: Interruptions | None = None
        self._apiserver: Any = None
        self._kubeconfig: Path | None = options.kubeconfig
        self._charts: chartrepo.ChartRepository | None = None
        self._control: ControlApi | None = None
        self._token = secrets.token_urlsafe(32)
        self._endings: set[asyncio.Task[None]] = set()

    # Life

    async def start(self) -> None:
        """
        Start every part and write state.json.

        :raises SandboxError: a problem that the user can fix; the message says how.
        """
        wanted, ports = self.options.parts, self.options.ports
        if "charts" in wanted:
            self._charts = chartrepo.ChartRepository(self.options.charts_dir)
        server = await find_server(self.options.kubeconfig, self._say) if self.options.kubeconfig else None
        if server is not None and server.version:
            # EKS says which version the cluster has, and the nodes' kubelets are as old.
            self.settings = replace(self.settings, kubernetes_version=server.version)
        if "aws" in wanted:
            self._say("starting AWS (moto, EKS, the account)")
            await self._start_aws(ports.aws)
        if server is not None:
            self._publish_endpoint(server.url, server.ca_data)
        elif "apiserver" in wanted:
            self._say("starting the Kubernetes API server")
            await self._start_apiserver(ports.kubernetes)
        if self._charts is not None:
            await _bind("charts", self._charts.start, ports.charts)
            self._closers.append(("charts", self._charts.close))
            self._doors["charts"] = self._charts.door()
        self._control = ControlApi(self, self._token)
        await _bind("control", self._control.start, ports.control)
        self._closers.append(("control", self._control.close))
        for name in BACKGROUND:
            if name in wanted:
                self._say(f"starting {name}")
                self._start_part(name)
        self._write_state()

    async def wait_ready(self) -> None:
        """Returns when the system nodes are Ready (where nodes are simulated at all)."""
        if "nodes" in self.options.parts and self._kubeconfig is not None:
            self._say("waiting for the system nodes")
            kube = Kube.from_kubeconfig(self._kubeconfig, user_agent="sandbox-cloud")
            try:
                await asyncio.wait_for(self._system_nodes_ready(kube), max(30.0, self.clock.real(_READY_TIMEOUT)))
            except TimeoutError as error:
                raise SandboxError("the system nodes did not become Ready; see the log") from error
            finally:
                await kube.close()
        self.phase = "ready"
        self._write_state()

    async def close(self) -> None:
        """Stop everything in reverse order; safe to call at any point of the start."""
        for task in self._endings:
            task.cancel()
        for name in reversed(BACKGROUND):
            if name in self._parts:
                await self._parts[name].stop()
        for _, closer in reversed(self._closers):
            result = closer()
            if asyncio.iscoroutine(result):
                with suppress(Exception):  # a part that fails to stop must not keep the others running
                    await result
        self._closers.clear()
        self.settings.audit.close()
        state.remove(self.settings.state_dir)

    # AWS

    async def _start_aws(self, port: int) -> None:
        settings = self.settings
        try:
            self._moto = await moto_server.start(settings)
        except moto_server.MotoError as error:
            raise SandboxError(str(error)) from error
        self._closers.append(("moto", self._moto.close))
        direct = Aws(self._moto.url, settings.region)
        try:
            self._account = await accounts.prepare(direct, settings)
        finally:
            direct.close()
        self._shim = Shim(settings, self.clock, self._moto.url)
        await _bind("aws", self._shim.start, port)
        self._closers.append(("shim", self._shim.close))
        admit_creator(self._shim.eks, settings, self._account)
        self._account = self._account.seen_at(self._moto.url, self._shim.url)
        self._aws = Aws(self._shim.url, settings.region, self._account.access_key_id, self._account.secret_access_key)
        self._closers.append(("aws", self._aws.close))
        queues = [self._account.karpenter_queue_url, self._account.fleet_queue_url]
        self._interruptions = Interruptions(settings, self.clock, self._aws, queues)

    # Kubernetes

    async def _start_apiserver(self, port: int) -> None:
        from sandbox.apiserver import serve
        from sandbox.apiserver.access.auth import User

        assert self._shim is not None  # noqa: S101 - choose_parts refuses an API server without AWS
        settings = self.settings

        def user(identity: Identity) -> User:
            return User(identity.name, identity.groups, extra={"arn": (identity.arn,)})

        authenticator = Authenticator(self._shim.eks, self._shim.url, settings.region, settings.cluster_name, user)
        self._closers.append(("authenticator", authenticator.close))
        pki = Pki(settings.state_dir / "pki")

        async def start(chosen: int) -> None:
            self._apiserver = await serve(settings, pki, authenticator, port=chosen, clock=self.clock)

        await _bind("kubernetes", start, port)
        eks = self._shim.eks

        def associated(namespace: str, account: str) -> bool:
            cluster = eks.known(settings.region, settings.cluster_name)
            return cluster is not None and bool(eks.list_pod_identities(cluster, namespace, account))

        self._apiserver.admission.associated = associated
        self._closers.append(("apiserver", self._apiserver.close))
        self._doors["apiserver"] = self._apiserver.door
        cluster = settings.cluster_name
        self._kubeconfig = pki.write_kubeconfig(
            settings.state_dir / "admin.kubeconfig", self._apiserver.url, cluster=cluster
        )
        for part, name in _USERS.items():
            pki.write_kubeconfig(
                settings.state_dir / f"{part}.kubeconfig",
                self._apiserver.url,
                name,
                ("system:masters",),
                cluster=cluster,
            )
        self._publish_endpoint(self._apiserver.url, pki.ca_data)

    def _publish_endpoint(self, url: str, ca_data: str | None) -> None:
        if self._shim is not None:
            cluster = self._shim.eks.cluster(self.settings.region, self.settings.cluster_name)
            cluster.endpoint, cluster.ca_data = url, ca_data

    def _start_part(self, name: str) -> None:
        module = importlib.import_module(f"sandbox.{name}")
        own = self.settings.state_dir / f"{name}.kubeconfig"
        kubeconfig = self.options.kubeconfig or own

        async def run() -> None:
            kube = Kube.from_kubeconfig(kubeconfig, user_agent=f"sandbox-{name}")
            try:
                arguments: list[Any] = [self.settings, self.clock, kube]
                if name != "controllers":
                    arguments.append(self._aws)
                await module.run(*arguments)
            finally:
                await kube.close()

        self._parts[name] = Part(name, run, self._part_failed)
        self._parts[name].start()

    def _part_failed(self, message: str) -> None:
        if not self.broken.done():
            self.broken.set_result(message)

    async def _system_nodes_ready(self, kube: Kube) -> None:
        while True:
            with suppress(Exception):  # the API server is still starting, or a foreign one is slow
                ready = 0
                for node in await kube.list("Node"):
                    conditions = node.get("status", {}).get("conditions") or []
                    ready += any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
                if ready >= accounts.SYSTEM_NODES:
                    return
            await asyncio.sleep(0.2)

    # State

    def environment(self) -> dict[str, str]:
        """What ``python -m sandbox env`` prints."""
        variables: dict[str, str] = {}
        if self._shim is not None and self._account is not None:
            variables |= {
                "AIRFLOW_CONN_AWS_DEMO": json.dumps(
                    {
                        "conn_type": "aws",
                        "login": self._account.access_key_id,
                        "password": self._account.secret_access_key,
                        "extra": {"endpoint_url": self._shim.url, "region_name": self.settings.region},
                    }
                ),
                "AWS_ENDPOINT_URL": self._shim.url,
                "AWS_ACCESS_KEY_ID": self._account.access_key_id,
                "AWS_SECRET_ACCESS_KEY": self._account.secret_access_key,
                "AWS_DEFAULT_REGION": self.settings.region,
            }
        if self._kubeconfig is not None:
            variables["KUBECONFIG"] = str(self._kubeconfig.resolve())
        if self._charts is not None:
            variables["GPU_FLEET_CHART_MIRRORS"] = json.dumps(self._charts.mirrors())
        if self._control is not None:
            variables["SANDBOX_CONTROL"] = self._control.url
        return variables

    def _write_state(self) -> None:
        assert self._control is not None  # noqa: S101 - started first
        found: dict[str, Any] = {
            "phase": self.phase,
            "pid": os.getpid(),
            "pids": {"sandbox": os.getpid(), **({"moto": self._moto.pid} if self._moto else {})},
            "speed": self.settings.speed,
            "seed": self.settings.seed,
            "cluster": self.settings.cluster_name,
            "region": self.settings.region,
            "parts": sorted(self.options.parts),
            "control": {"url": self._control.url, "token": self._token},
            "env": self.environment(),
        }
        if self._shim is not None and self._account is not None:
            found["aws"] = {"url": self._shim.url, "account": self.settings.account, **self._account.to_json()}
        if self._kubeconfig is not None:
            found["kubernetes"] = {
                "version": self.settings.kubernetes_version,
                "url": Kube.from_kubeconfig(self._kubeconfig).server,
                "kubeconfig": str(self._kubeconfig.resolve()),
            }
        if self._charts is not None:
            found["charts"] = {"url": self._charts.url}
        try:
            state.write(self.settings.state_dir, found)
        except OSError as error:
            raise SandboxError(f"cannot write {self.settings.state_dir / state.STATE}: {error.strerror}") from error

    # What the control API asks

    @property
    def faults(self) -> FaultBoard:
        return self.settings.faults

    @property
    def audit(self) -> AuditLog:
        return self.settings.audit

    @property
    def stoppable(self) -> dict[str, Stoppable]:
        """Background parts, and the servers whose doors can be closed."""
        return {**self._parts, **self._doors}

    def status(self) -> dict[str, Any]:
        found = self.stoppable
        always = {name: "running" for name in self.options.parts if name not in found}
        return {
            "phase": self.phase,
            "speed": self.settings.speed,
            "seed": self.settings.seed,
            "cluster": self.settings.cluster_name,
            "parts": {**always, **{name: str(part.state) for name, part in found.items()}},
            "restarts": {name: part.restarts for name, part in self._parts.items() if part.restarts},
            "faults": self.faults.snapshot(),
        }

    def requests(self) -> Any:
        """The API server's counters: one entry per verb, resource, subresource, user agent and status code."""
        if self._apiserver is None:
            return []
        return [{**asdict(seen), "count": count} for seen, count in self._apiserver.request_log().items()]

    async def waits(self) -> list[dict[str, Any]]:
        """Injected waits of every part: those of the clock here and of the instances in moto."""
        own = [asdict(wait) for wait in self.clock.waits]
        moto = [] if self._moto is None else await self._moto.waits()
        return sorted([*own, *moto], key=lambda wait: wait["started"])

    async def interrupt(self, instance: str, kind: Kind) -> dict[str, Any]:
        if self._interruptions is None:
            raise SandboxError("the part aws is not running in this sandbox")
        event = await self._interruptions.announce(instance, kind)
        task = asyncio.create_task(self._interruptions.finish(instance, kind))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return event

    async def add_node(self, instance_type: str, group: str, labels: dict[str, str], taints: list[str]) -> str:
        """A node of another team's managed node group; the instance's id."""
        if self._aws is None:
            raise SandboxError("the part aws is not running in this sandbox")
        return await nodegroups.add_node(self._aws, self.settings, instance_type, group, labels, taints)


async def _bind(name: str, start: Callable[[int], Any], port: int) -> None:
    """Start a server.

    :raises SandboxError: if it cannot listen, with the reason and the remedy.
    """
    try:
        await start(port)
    except OSError as error:
        raise SandboxError(
            f"cannot listen on 127.0.0.1:{port} for {name}: {os.strerror(error.errno or 0)}; free the port or choose "
            f"another with --{name}-port"
        ) from error
