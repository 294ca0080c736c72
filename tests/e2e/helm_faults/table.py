"""The table itself and what its entries share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from gpu_fleet.core.errors import GpuFleetError
from tests.e2e.helm_world import World, helm_children, wait_for

Scenario = Callable[[World], None]


@dataclass(frozen=True)
class Fault:
    """One entry.

    :ivar number: in the table of faults.
    :ivar variant: of several entries with that number.
    :ivar quick: part of ``make test``.
    :ivar controllers: needs what kube-controller-manager does.
    """

    number: int
    title: str
    scenario: Scenario
    variant: str = ""
    quick: bool = False
    controllers: bool = False

    @property
    def id(self) -> str:
        return f"fault-{self.number:02d}" + (f"-{self.variant}" if self.variant else "")


TABLE: list[Fault] = []


def fault(
    number: int, title: str, *, variant: str = "", quick: bool = False, controllers: bool = False
) -> Callable[[Scenario], Scenario]:
    def add(scenario: Scenario) -> Scenario:
        TABLE.append(Fault(number, title, scenario, variant, quick, controllers))
        return scenario

    return add


def failing(call: Callable[[], Any]) -> GpuFleetError:
    """The typed error of a call that must not succeed."""
    with pytest.raises(GpuFleetError) as caught:
        call()
    return caught.value


class InThread:
    """Runs a call beside the test."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.error: GpuFleetError | None = None
        self.result: Any = None

        def body() -> None:
            try:
                self.result = call()
            except GpuFleetError as error:
                self.error = error

        self.thread = threading.Thread(target=body)
        self.thread.start()

    def join(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()


def slow_deployment(**changes: Any) -> list[dict[str, Any]]:
    """Helm hangs when it writes the Deployment, its last object: Helm 4 applies, Helm 3 creates or patches."""
    rule = {"resource": "deployments", "userAgent": "Helm", "latency": 60, **changes}
    return [{**rule, "verb": verb} for verb in ("patch", "create")]


def failing_deployment(status: int, **changes: Any) -> list[dict[str, Any]]:
    """The API server refuses Helm's write of the Deployment."""
    text = 'Deployment.apps "tiny" is invalid: spec: Invalid value: "injected"' if status == 422 else "injected"
    return slow_deployment(latency=0, status=status, message=text, **changes)


def helm_at_work(place: World, holds: Callable[[], Any], of: int | None = None) -> int:
    """The pid of the running helm, once something holds that it brings about."""
    (pid,) = wait_for("helm at work", lambda: holds() and helm_children(of), place.patience)
    return int(pid)


def kill(number: int, *pids: int) -> None:
    for pid in pids:
        os.kill(pid, number)
