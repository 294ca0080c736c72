"""A gate: what to look at, and the pure function that judges it.

Observing (``hooks``, ``triggers``) and judging (here) are separate. :mod:`gpu_fleet.core.gates.registry` lists all of
them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.queries import Query
from gpu_fleet.core.verdict import Verdict

#: JSON-able arguments of a gate.
Args = Mapping[str, Any]

#: key of a query -> the objects observed, as plain JSON dictionaries.
Snapshot = Mapping[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Gate:
    """A named gate.

    :ivar queries: args -> what to look at.
    :ivar judge: (snapshot, args) -> verdict; pure and total: an empty snapshot is never Ready unless the gate waits for
        absence (``waits_for_absence``), and an old ``observedGeneration`` is Progressing.
        ``args["now"]`` holds the time of the look and ``args["started"]`` that of the first look, both in epoch seconds
        by the API server's clock, because they are compared with time stamps of the cluster; ``args["here"]`` holds the
        time of the look by the clock of the process that judges, for this package's own deadlines.
    :ivar confirm: what follows this gate cannot be undone: when its trigger reports Ready, the worker looks once more,
        with the connection as it is now (a triggerer's session may be of an account that it named before).
    """

    name: str
    queries: Callable[[Args], tuple[Query, ...]]
    judge: Callable[[Snapshot, Args], Verdict]
    waits_for_absence: bool = False
    confirm: bool = False
