"""What EC2 knows of instances' health beside their state: failed status checks, and scheduled events.

Set by :mod:`sandbox.aws.interruptions`, read by ``DescribeInstanceStatus`` (:mod:`sandbox.aws.statuschecks`).
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, replace

#: Begins the description of an event that is over, which EC2 shows for up to a week (EC2 API Reference,
#: InstanceStatusEvent).
COMPLETED = "[Completed] "


@dataclass(frozen=True)
class ScheduledEvent:
    """
    :ivar code: ``instance-retirement``, for example.
    :ivar not_before: earliest start, epoch seconds.
    :ivar not_after: latest end, epoch seconds.
    """

    identifier: str
    code: str
    description: str
    not_before: float
    not_after: float


@dataclass(frozen=True)
class Health:
    """
    :ivar impaired: name of the failed check, ``instance`` or ``system`` -> since when, epoch seconds.
    """

    events: tuple[ScheduledEvent, ...] = ()
    impaired: tuple[tuple[str, float], ...] = ()

    def since(self, check: str) -> float | None:
        return dict(self.impaired).get(check)


class StatusBook:
    """By instance id; an instance that is not in it is well."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Health] = {}

    def of(self, instance: str) -> Health:
        with self._lock:
            return self._known.get(instance, Health())

    def schedule(self, instance: str, code: str, description: str, not_before: float, not_after: float) -> str:
        """A scheduled event; its id."""
        event = ScheduledEvent(
            f"instance-event-0{uuid.uuid4().hex[:16]}", code, description, round(not_before), round(not_after)
        )
        with self._lock:
            known = self._known.get(instance, Health())
            self._known[instance] = replace(known, events=(*known.events, event))
        return event.identifier

    def complete(self, instance: str) -> None:
        """All events of the instance are over."""
        with self._lock:
            known = self._known.get(instance, Health())
            events = tuple(
                each
                if each.description.startswith(COMPLETED)
                else replace(each, description=COMPLETED + each.description)
                for each in known.events
            )
            self._known[instance] = replace(known, events=events)

    def impair(self, instance: str, check: str, since: float) -> None:
        with self._lock:
            known = self._known.get(instance, Health())
            self._known[instance] = replace(known, impaired=tuple(({check: since} | dict(known.impaired)).items()))

    def recover(self, instance: str) -> None:
        """All its checks pass again."""
        with self._lock:
            self._known[instance] = replace(self._known.get(instance, Health()), impaired=())
