"""A task's worker that is killed at one of its writes, and the try that comes after it.

A SIGKILL leaves no time for anything: from the death on, neither the cluster nor Airflow hears of this worker, whatever
its ``finally`` blocks still do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gpu_fleet.core.errors import ApiUnavailable
from gpu_fleet.hooks.kubernetes.transport import Transport
from tests.unit.airflow_context import StateStore, TaskInstance


class Killed(BaseException):
    """The worker is dead."""


@dataclass
class Killer:
    """Kills the worker at one write of a series of tasks, once; every later worker lives.

    :ivar at: number of the write, from 1; 0 for none.
    :ivar after: whether the server still does it.
    :ivar made: every write that reached the server, ``METHOD path``; dry runs are none.
    :ivar killed: whether the write was come to.
    """

    at: int = 0
    after: bool = False
    made: list[str] = field(default_factory=list)
    killed: bool = False
    _dead: bool = False
    _seen: int = 0

    def run(self, task: Callable[[], Any], meanwhile: Callable[[], None] = lambda: None) -> Any:
        """What a task returns, or raises, in its first or second try.

        :param meanwhile: what happens in the cluster between a death and the next try.
        """
        try:
            return self.once(task)
        except Killed:
            meanwhile()
            return self.once(task)

    def once(self, task: Callable[[], Any]) -> Any:
        """One try.

        :raises Killed: it was this one.
        """
        self._dead = False
        with self._watching():
            return task()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        request, store, push = Transport.request, StateStore.set, TaskInstance.xcom_push

        def watched(transport: Transport, method: str, path: str, **options: Any) -> bytes:
            if self._dead:
                self._die()
            if method == "GET" or is_dry_run(options):
                return request(transport, method, path, **options)
            self._seen += 1
            mine = self._seen == self.at
            if mine and not self.after:
                self._die()
            answer = request(transport, method, path, **options)
            self.made.append(f"{method} {path}")
            if mine:
                self._die()
            return answer

        def unless_dead(call: Callable[..., None]) -> Callable[..., None]:
            return lambda *args: None if self._dead else call(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Transport, "request", watched)
            patch.setattr(StateStore, "set", unless_dead(store))
            patch.setattr(TaskInstance, "xcom_push", unless_dead(push))
            yield

    def _die(self) -> None:
        self._dead = self.killed = True
        if threading.current_thread() is not threading.main_thread():
            raise ApiUnavailable("this worker is dead")  # a thread of its own ends quietly
        raise Killed


def is_dry_run(options: Mapping[str, Any]) -> bool:
    """Whether a request asks the server not to do it, in its query or as evictions do."""
    body = options.get("body")
    asked = body.get("deleteOptions") if isinstance(body, dict) else None
    return "dryRun" in (options.get("query") or {}) or "dryRun" in (asked or {})
