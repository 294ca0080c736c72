"""Which nodes of a gated pool take users' pods, and what their condition says. Pure, and total.

Only a passed proof, or ``admitUnproven: withWarning`` after the time box, opens a node. A node that failed stays closed
until a later proof passes. What a killed task left behind is settled by the next one from what the node itself shows.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpu_fleet.core.admission.mark import (
    ADMITTED_UNPROVEN,
    OVERDUE,
    PASSED,
    PENDING,
    Proof,
    Proven,
    is_unproven,
    proof_of,
)
from gpu_fleet.core.kubernetes.names import ANNOTATION_PROTECTED_BY
from gpu_fleet.core.kubernetes.objects import Object, annotations_of, created_at
from gpu_fleet.core.pools.quarantine import Judgement
from gpu_fleet.core.validation.report import Outcome


@dataclass(frozen=True)
class TimeBox:
    """How long a proof may take, and what follows.

    :ivar seconds: from the creation of the Node, ``validation.admitWithin``.
    :ivar admits: ``validation.admitUnproven`` is ``withWarning``.
    """

    seconds: float
    admits: bool


@dataclass(frozen=True)
class Decision:
    """What to do about one node.

    :ivar proof: what its condition is to say; ``None``: leave it.
    :ivar admit: remove the startup taint.
    """

    proof: Proof | None = None
    admit: bool = False


LEAVE = Decision()


def decide(node: Object, judged: Judgement | None, box: TimeBox, *, now: float, run: str, why: str = "") -> Decision:
    """What to do about a node of a gated pool at the end of a run.

    :param judged: what this run's probes say of it; ``None``: they did not reach it.
    :param now: epoch seconds by the API server's clock.
    :param run: ``<dag_id>/<run_id>``.
    :param why: why the run has proven nothing, in words.
    """
    closed, before = is_unproven(node), proof_of(node)
    if judged is not None and judged.outcome is Outcome.PASSED:
        return Decision(Proof(Proven.YES, PASSED, f"proven by {run}"), admit=closed)
    if judged is not None and judged.outcome is Outcome.FAILED:
        return Decision(Proof(Proven.NO, judged.reason or "ProofFailed", f"{judged.message} ({run})"))
    if not closed:
        return LEAVE  # It takes pods already; that a run could not look at it changes nothing.
    if before is not None and before.status is Proven.YES:
        return Decision(admit=True)  # The task that proved it was killed before it removed the taint.
    if before is not None and before.status is Proven.NO:
        return LEAVE
    other = annotations_of(node).get(ANNOTATION_PROTECTED_BY)
    if other and other != run:
        return LEAVE  # Another run is proving it.
    reason = f"{judged.reason}: {judged.message}" if judged is not None and judged.reason else ""
    found = reason or why or "not tested yet"
    if now - (created_at(node) or now) < box.seconds:
        return Decision(Proof(Proven.UNKNOWN, PENDING, found))
    if box.admits:
        text = f"admitted without a proof after {box.seconds:.0f} s (admitUnproven: withWarning): {found}"
        return Decision(Proof(Proven.UNKNOWN, ADMITTED_UNPROVEN, text), admit=True)
    text = f"not proven within {box.seconds:.0f} s, kept closed (admitUnproven: keepAway): {found}"
    return Decision(Proof(Proven.UNKNOWN, OVERDUE, text))
