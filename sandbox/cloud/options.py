"""Which parts of the sandbox run, and where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.state import SandboxError

ALL_PARTS = ("aws", "apiserver", "controllers", "nodes", "karpenter", "charts")
BACKGROUND = ("controllers", "nodes", "karpenter")
# With a foreign API server these two are not started; controllers are on request, as envtest has none.
_NOT_WITH_KUBECONFIG = {"apiserver", "controllers"}


@dataclass(frozen=True)
class Ports:
    """0 picks a free one."""

    aws: int = 0
    kubernetes: int = 0
    charts: int = 0
    control: int = 0


@dataclass(frozen=True)
class Options:
    """
    :ivar parts: which of :data:`ALL_PARTS` to run.
    :ivar kubeconfig: run nodes and Karpenter against this API server instead of an own one.
    :ivar charts_dir: a folder of real chart archives to serve instead of the stand-ins.
    """

    parts: frozenset[str] = frozenset(ALL_PARTS)
    kubeconfig: Path | None = None
    charts_dir: Path | None = None
    ports: Ports = field(default_factory=Ports)


def choose_parts(names: Iterable[str] | None, kubeconfig: Path | None) -> frozenset[str]:
    """
    The parts to run.

    :raises SandboxError: an unknown part, or a choice that cannot work.
    """
    chosen = frozenset(names) if names is not None else frozenset(ALL_PARTS)
    unknown = chosen - set(ALL_PARTS)
    if unknown:
        raise SandboxError(f"unknown part {', '.join(sorted(unknown))}; the parts are: {', '.join(ALL_PARTS)}", code=2)
    if kubeconfig is not None:
        chosen -= _NOT_WITH_KUBECONFIG if names is None else {"apiserver"}
    elif chosen & set(BACKGROUND) and "apiserver" not in chosen:
        raise SandboxError("controllers, nodes and karpenter need the part apiserver, or --kubeconfig FILE", code=2)
    if chosen & {"nodes", "karpenter", "apiserver"} and "aws" not in chosen:
        raise SandboxError("apiserver, nodes and karpenter need the part aws", code=2)
    return chosen
