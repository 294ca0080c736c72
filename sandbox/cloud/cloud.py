"""The whole small cloud in one process: starts the parts, connects them by their addresses, and ends them.

Order of start: AWS (moto, account, shim) → API server → chart repository and control API → controllers, nodes,
Karpenter. Parts know each other only through HTTP; what they are handed here are addresses and credentials.
"""

from __future__ import annotations

import asyncio
import importlib
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sandbox import chartrepo, state
from sandbox.audit import AuditLog
from sandbox.aws import nodegroups
from sandbox.aws.interruptions import Wanted
from sandbox.cloud import published
from sandbox.cloud.aws import RunningAws, start_aws
from sandbox.cloud.control import ControlApi
from sandbox.cloud.foreign import find_server
from sandbox.cloud.kubernetes import publish_endpoint, start_apiserver, system_nodes_ready
from sandbox.cloud.listening import Closers, bind
from sandbox.cloud.options import BACKGROUND, Options
from sandbox.doors import Door
from sandbox.faults import FaultBoard
from sandbox.kube.client import Kube
from sandbox.losses import LossBook
from sandbox.parts import Part, Stoppable
from sandbox.settings import Clock, Settings
from sandbox.state import SandboxError

Say = Callable[[str], None]


class Cloud:
    """:meth:`start`, then :meth:`close`.

    :ivar broken: set to a message when a part has failed for good.
    :ivar aws: what the part ``aws`` consists of, once it runs.
    """

    def __init__(self, settings: Settings, options: Options, say: Say) -> None:
        self.settings = settings
        self.options = options
        self.clock = Clock(settings.speed, settings.seed)
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.phase = "starting"
        self._say = say
        self._parts: dict[str, Part] = {}
        self._doors: dict[str, Door] = {}
        self._closers: Closers = []
        self.aws: RunningAws | None = None
        self._apiserver: Any = None
        self._kubeconfig: Path | None = options.kubeconfig
        self._charts: chartrepo.ChartRepository | None = None
        self._control: ControlApi | None = None
        self._token = secrets.token_urlsafe(32)

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
            self.aws = await start_aws(self.settings, self.clock, ports.aws, self._closers)
        if server is not None:
            if self.aws is not None:
                publish_endpoint(self.settings, self.aws.shim, server.url, server.ca_data)
        elif "apiserver" in wanted:
            self._say("starting the Kubernetes API server")
            await self._start_apiserver(ports.kubernetes)
        if self._charts is not None:
            await bind("charts", self._charts.start, ports.charts)
            self._closers.append(("charts", self._charts.close))
            self._doors["charts"] = self._charts.door()
        self._control = ControlApi(self, self._token)
        await bind("control", self._control.start, ports.control)
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
            await system_nodes_ready(self._kubeconfig, self.clock)
        self.phase = "ready"
        self._write_state()

    async def close(self) -> None:
        """Stop everything in reverse order; safe to call at any point of the start."""
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

    # Parts

    async def _start_apiserver(self, port: int) -> None:
        assert self.aws is not None  # noqa: S101 - choose_parts refuses an API server without AWS
        started = await start_apiserver(self.settings, self.clock, self.aws.shim, port, self._closers)
        self._apiserver, self._kubeconfig = started
        self._doors["apiserver"] = self._apiserver.door

    def _start_part(self, name: str) -> None:
        module = importlib.import_module(f"sandbox.{name}")
        own = self.settings.state_dir / f"{name}.kubeconfig"
        kubeconfig = self.options.kubeconfig or own

        async def run() -> None:
            kube = Kube.from_kubeconfig(kubeconfig, user_agent=f"sandbox-{name}")
            try:
                arguments: list[Any] = [self.settings, self.clock, kube]
                if name != "controllers":
                    arguments.append(None if self.aws is None else self.aws.client)
                await module.run(*arguments)
            finally:
                await kube.close()

        self._parts[name] = Part(name, run, self._part_failed)
        self._parts[name].start()

    def _part_failed(self, message: str) -> None:
        if not self.broken.done():
            self.broken.set_result(message)

    # State

    def environment(self) -> dict[str, str]:
        """What ``python -m sandbox env`` prints."""
        return published.environment(self.settings, self.aws, self._kubeconfig, self._charts, self._control)

    def _write_state(self) -> None:
        assert self._control is not None  # noqa: S101 - started first
        found: dict[str, Any] = {
            **published.running(self.settings, self.options, self.aws, self._kubeconfig, self._charts),
            "phase": self.phase,
            "control": {"url": self._control.url, "token": self._token},
            "env": self.environment(),
        }
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
    def losses(self) -> LossBook:
        return self.settings.losses

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
            "interruptions": len(self.interruptions()),
            "lost": self.losses.shown(),
        }

    def requests(self) -> Any:
        """The API server's counters: one entry per verb, resource, subresource, user agent and status code."""
        if self._apiserver is None:
            return []
        return [{**asdict(seen), "count": count} for seen, count in self._apiserver.request_log().items()]

    async def waits(self) -> list[dict[str, Any]]:
        """Injected waits of every part: those of the clock here and of the instances in moto."""
        own = [asdict(wait) for wait in self.clock.waits]
        moto = [] if self.aws is None else await self.aws.moto.waits()
        return sorted([*own, *moto], key=lambda wait: wait["started"])

    async def interrupt(self, wanted: Wanted) -> dict[str, Any]:
        """See :meth:`sandbox.aws.interruptions.Interruptions.interrupt`."""
        return await self._running_aws().interruptions.interrupt(wanted)

    def interruptions(self) -> list[dict[str, Any]]:
        """What was announced so far."""
        return [] if self.aws is None else list(self.aws.interruptions.announced)

    async def reservations(self) -> list[dict[str, Any]]:
        """Capacity reservations, with their instances."""
        return await self._running_aws().moto.reservations()

    async def reserve(self, body: dict[str, Any], identifier: str = "") -> dict[str, Any]:
        """See :mod:`sandbox.cloud.reserving`."""
        return await self._running_aws().moto.reserve(body, identifier)

    async def add_node(
        self, instance_type: str, group: str, labels: dict[str, str], taints: list[str], *, spot: bool = False
    ) -> str:
        """A node of another team's managed node group; the instance's id."""
        client = self._running_aws().client
        return await nodegroups.add_node(client, self.settings, instance_type, group, labels, taints, spot=spot)

    def _running_aws(self) -> RunningAws:
        if self.aws is None:
            raise SandboxError("the part aws is not running in this sandbox")
        return self.aws
