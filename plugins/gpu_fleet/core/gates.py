"""Gates as data: what to look at, and the pure function that judges it.

A gate is registered under a name, so that a trigger can carry ``{"gate": name, "args": {...}}`` as JSON and find the
same function again in the triggerer. Observing (``hooks``, ``triggers``) and judging (here) are separate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.kinds import Kind
from gpu_fleet.core.verdict import Verdict

#: JSON-able arguments of a gate.
Args = Mapping[str, Any]


@dataclass(frozen=True)
class KubeQuery:
    """A list (and watch) of one kind. With ``name`` it selects at most that object.

    :ivar key: under which the objects appear in the snapshot.
    :ivar watch: ``False`` for kinds that only explain (events): listed again at each look, not watched.
    """

    key: str
    kind: Kind
    namespace: str | None = None
    name: str | None = None
    label_selector: str | None = None
    field_selector: str | None = None
    watch: bool = True


@dataclass(frozen=True)
class AwsQuery:
    """A read-only AWS call, polled, because AWS has no watch.

    :ivar key: under which the *list* of results appears in the snapshot (a single result is a list of one).
    :ivar service: boto3 client name; :ivar operation: its snake_case method; :ivar params: keyword arguments.
    :ivar path: dotted path into the response that holds the result, for example ``cluster`` or
        ``Reservations.Instances`` (lists are flattened).
    :ivar absent_codes: AWS error codes that mean an empty list instead of an error.
    """

    key: str
    service: str
    operation: str
    params: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    absent_codes: tuple[str, ...] = ()


Query = KubeQuery | AwsQuery

#: key of a query -> the objects observed, as plain JSON dictionaries.
Snapshot = Mapping[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Gate:
    """A named gate.

    :ivar queries: args -> what to look at.
    :ivar judge: (snapshot, args) -> verdict; pure and total: an empty snapshot is never Ready unless the gate waits for
        absence (``waits_for_absence``), and an old ``observedGeneration`` is Progressing.
        ``args["now"]`` holds the time of the look, ``args["started"]`` that of the first look, both in epoch seconds by
        the API server's clock, for they are compared with time stamps of the cluster; ``args["here"]`` the time of the
        look by the clock of the process that judges, for deadlines of our own.
    :ivar confirm: what waits for it cannot be taken back: when its trigger says Ready, the worker looks once more, with
        the connection as it is now (a triggerer's session may be of an account that it named before).
    """

    name: str
    queries: Callable[[Args], tuple[Query, ...]]
    judge: Callable[[Snapshot, Args], Verdict]
    waits_for_absence: bool = False
    confirm: bool = False


_GATES: dict[str, Gate] = {}


def register(gate: Gate) -> Gate:
    """Add a gate to the registry; the name must be new."""
    if gate.name in _GATES:
        raise ValueError(f"gate {gate.name!r} is registered twice")
    _GATES[gate.name] = gate
    return gate


def gate_named(name: str) -> Gate:
    """The gate of that name.

    :raises KeyError: with the known names, if there is none.
    """
    import gpu_fleet.core.readiness  # noqa: F401  (registers all gates)

    try:
        return _GATES[name]
    except KeyError:
        raise KeyError(f"no gate {name!r}; known: {', '.join(sorted(_GATES))}") from None


def all_gates() -> tuple[Gate, ...]:
    """Every registered gate, for tests that hold for all of them."""
    import gpu_fleet.core.readiness  # noqa: F401

    return tuple(_GATES[name] for name in sorted(_GATES))
