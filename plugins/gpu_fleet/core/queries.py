"""What is looked at, as data: lists of Kubernetes objects and read-only AWS calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.kubernetes.kinds import Kind


@dataclass(frozen=True)
class KubeQuery:
    """A list (and watch) of one kind. With ``name`` it selects at most that object.

    :ivar key: under which the objects appear in the snapshot.
    :ivar watch: ``False`` for kinds that only explain (events): listed anew for each look, not watched.
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
    :ivar service: boto3 client name.
    :ivar operation: its snake_case method.
    :ivar params: keyword arguments.
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
