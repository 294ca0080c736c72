"""Lives in time for moto's instances, and a record of their changes of state; in moto's process only.

Moto is instant: an instance runs when RunInstances returns, and is terminated when TerminateInstances does. Here it is
``pending``, ``stopping`` or ``shutting-down`` for a while, after the latency model, and is forgotten an hour after its
end, as by EC2. Each change of state is recorded when its time has come, because EC2 sends an event for each
(docs.aws.amazon.com/AWSEC2/latest/UserGuide/monitoring-instance-state-changes.html).
"""

from __future__ import annotations

import copy
import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

#: Changes that are kept: thousands of instances' lives.
KEPT = 20_000
PENDING, RUNNING, SHUTTING_DOWN, TERMINATED = ("pending", 0), ("running", 16), ("shutting-down", 32), ("terminated", 48)
STOPPING, STOPPED = ("stopping", 64), ("stopped", 80)
#: EC2's state reason for an instance that it took back (API reference, StateReason).
RECLAIMED = ("Server.SpotInstanceTermination", "Server.SpotInstanceTermination: Spot instance termination")


@dataclass(frozen=True)
class Latency:
    """Each returns the real seconds of one such step."""

    running: Callable[[], float]
    stopped: Callable[[], float]
    terminated: Callable[[], float]


class Transitions:
    """Changes of state in the order in which they happen; those to come are known, too."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._number = itertools.count()
        self._coming: list[tuple[float, int, str, str]] = []
        self._current: dict[str, set[int]] = {}
        self._happened: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._next = 1

    def travels(self, instance: str, changes: Iterable[tuple[str, float]]) -> None:
        """What an instance goes through from now on, as states and real seconds; what was to come is off."""
        moment = time.time()
        with self._condition:
            self._settle()
            numbers = self._current[instance] = set()
            for state, seconds in changes:
                number = next(self._number)
                numbers.add(number)
                heapq.heappush(self._coming, (moment + seconds, number, instance, state))
            self._condition.notify_all()

    def since(self, number: int, wait: float) -> list[dict[str, Any]]:
        """Changes from ``number`` on; waits for the first one up to ``wait`` seconds."""
        deadline = time.time() + wait
        with self._condition:
            while True:
                self._settle()
                found = [each for each in self._happened if each["number"] >= number]
                left = deadline - time.time()
                if found or left <= 0:
                    return found
                if self._coming:
                    left = min(left, max(0.001, self._coming[0][0] - time.time()))
                self._condition.wait(left)

    def _settle(self) -> None:
        while self._coming and self._coming[0][0] <= time.time():
            moment, number, instance, state = heapq.heappop(self._coming)
            known = self._current.get(instance, set())
            if number not in known:
                continue
            known.discard(number)
            if state == TERMINATED[0]:
                self._current.pop(instance, None)
            self._happened.append({"number": self._next, "instance": instance, "state": state, "time": moment})
            self._next += 1


class TimedState:
    """An instance state that is entered only when its time has come, and shows the state on the way until then."""

    def __init__(self, name: str, code: int) -> None:
        self._final = (name, code)
        self._via: tuple[str, int] | None = None
        self._until = 0.0

    def travel(self, name: str, code: int, via: tuple[str, int], seconds: float) -> None:
        self._final, self._via, self._until = (name, code), via, time.monotonic() + seconds

    def _current(self) -> tuple[str, int]:
        return self._via if self._via and time.monotonic() < self._until else self._final

    def since(self, name: str) -> float:
        """Seconds in this state; below zero if it is another one, or if it was not travelled to."""
        return time.monotonic() - self._until if self._via and self._current()[0] == name else -1.0

    def frozen(self) -> TimedState:
        return TimedState(*self._current())

    # moto assigns name and code one after the other; each assignment ends a transition.
    @property
    def name(self) -> str:
        return self._current()[0]

    @name.setter
    def name(self, value: str) -> None:
        self._final, self._via = (value, self._final[1]), None

    @property
    def code(self) -> int:
        return self._current()[1]

    @code.setter
    def code(self, value: int) -> None:
        self._final, self._via = (self._final[0], value), None

    def __copy__(self) -> TimedState:
        return self.frozen()


def slow_instances(latency: Latency, transitions: Transitions) -> None:
    """Gives moto's instances a life in time."""
    from moto.ec2.models.instances import Instance

    create, start, stop, terminate = Instance.__init__, Instance.start, Instance.stop, Instance.terminate

    def travel(instance: Any, goal: tuple[str, int], via: tuple[str, int], seconds: float) -> None:
        instance._state.travel(*goal, via, seconds)
        transitions.travels(instance.id, [(via[0], 0.0), (goal[0], seconds)])

    def slow_create(self: Any, *args: Any, **kwargs: Any) -> None:
        create(self, *args, **kwargs)
        if not kwargs.get("nics"):
            for interface in self.nics.values():  # EC2 made them with the instance, so they go with it; moto keeps them
                interface.delete_on_termination = True
        self._state = TimedState(*RUNNING)
        travel(self, RUNNING, PENDING, latency.running())

    def slow_start(self: Any) -> Any:
        previous = start(self)
        if previous.name != RUNNING[0]:
            travel(self, RUNNING, PENDING, latency.running())
        return previous

    def slow_stop(self: Any) -> Any:
        if self._state.name in (STOPPING[0], STOPPED[0]):  # EC2 takes a second StopInstances as a no-op
            return copy.copy(self._state)
        previous = stop(self)
        travel(self, STOPPED, STOPPING, latency.stopped())
        return previous

    def slow_terminate(self: Any) -> Any:
        if self._state.name in (SHUTTING_DOWN[0], TERMINATED[0]):  # and so a second TerminateInstances
            return copy.copy(self._state)
        previous = terminate(self)
        travel(self, TERMINATED, SHUTTING_DOWN, latency.terminated())
        return previous

    Instance.__init__ = slow_create
    Instance.start = slow_start
    Instance.stop = slow_stop
    Instance.terminate = slow_terminate


def reclaim(account: str, region: str, instances: Iterable[str], action: str) -> list[str]:
    """EC2 takes instances back: it terminates or stops (also for hibernation) those that still run; their ids."""
    from moto.ec2.models import ec2_backends
    from moto.ec2.models.instances import StateReason

    taken = []
    for identifier in instances:
        instance = ec2_backends[account][region].get_instance(identifier)
        if instance._state.name not in (PENDING[0], RUNNING[0]):
            continue
        if action == "terminate":
            instance.terminate()
        else:
            instance.stop()
        instance.state_reason = StateReason(RECLAIMED[1], RECLAIMED[0])
        taken.append(identifier)
    return taken


def state_of(account: str, region: str, instance: str) -> str:
    """The state of an instance; ``terminated`` for one that is forgotten."""
    from moto.ec2.models import ec2_backends

    found = ec2_backends[account][region].get_instance_by_id(instance)
    return TERMINATED[0] if found is None else str(found._state.name)


def forget_terminated(after: float) -> None:
    """
    Has moto forget instances, and their tags.

    :param after: real seconds since they are terminated.
    """
    from moto.ec2.models.instances import InstanceBackend

    all_reservations = InstanceBackend.all_reservations

    def forget_and_list(self: Any, filters: Any = None) -> Any:
        for key, reservation in list(self.reservations.items()):
            # A reservation without instances is one whose RunInstances is being answered at this moment.
            instances = list(reservation.instances)
            if instances and all(instance._state.since("terminated") > after for instance in instances):
                self.reservations.pop(key, None)
                for instance in reservation.instances:
                    self.tags.pop(instance.id, None)
        return all_reservations(self, filters)

    InstanceBackend.all_reservations = forget_and_list
