"""Notes on a cluster spec: what is allowed but worth knowing before it does something.

An ordered list of small functions, each yields the notes it has, like the rules beside it (``rules.py``). A rule
refuses a spec, a note never does: ``python -m gpu_fleet validate`` prints the notes and still exits with 0, and the
first task of every run logs them. Functions of one subject live in a module of their own, ``notes_<subject>.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gpu_fleet.core.spec import notes_jobs
from gpu_fleet.core.spec.problems import Note

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec

NoteRule = Callable[["ClusterSpec"], Iterator[Note]]

#: In the order in which they are shown.
NOTES: tuple[NoteRule, ...] = (
    notes_jobs.period_overrides_protection,
    notes_jobs.drift_evicts_pods,
    notes_jobs.expiry_evicts_pods,
    notes_jobs.consolidation_evicts_pods,
    notes_jobs.repair_deletes_pods,
)


def notes_of(spec: ClusterSpec) -> list[Note]:
    """Everything worth knowing about a spec that is valid."""
    return [note for rule in NOTES for note in rule(spec)]
