"""Notes on a cluster spec: what is valid, but has consequences that the author should know.

An ordered list of small functions; each yields its notes, like the rules in ``rules.py``. A rule refuses a spec, a note
does not: ``python -m gpu_fleet validate`` prints the notes and still exits with 0, and the first task of every run logs
them. Each subject has a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gpu_fleet.core.spec.notes import admission as notes_admission
from gpu_fleet.core.spec.notes import interruptions as notes_interruptions
from gpu_fleet.core.spec.notes import jobs as notes_jobs
from gpu_fleet.core.spec.notes import nodes as notes_nodes
from gpu_fleet.core.spec.notes import plugins as notes_plugins
from gpu_fleet.core.spec.notes import pools as notes_pools
from gpu_fleet.core.spec.notes import reservations as notes_reservations
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
    notes_pools.one_pod_reaches_several_pools,
    notes_pools.pool_without_nodes_buys_none,
    notes_pools.burst_buys_a_node_per_share,
    notes_pools.caps_of_unequal_types,
    notes_pools.shares_beyond_pod_places,
    notes_pools.arm_needs_images_for_arm,
    notes_nodes.fast_start_says_what_it_does,
    notes_nodes.parallel_pulls_may_be_slower,
    notes_nodes.metadata_reaches_pods,
    notes_plugins.nodes_of_others_need_our_label,
    notes_admission.gated_nodes_need_airflow,
    notes_admission.closed_nodes_keep_pods_waiting,
    notes_interruptions.karpenter_keeps_no_window,
    notes_reservations.karpenter_drains_before_the_package_is_done,
)


def notes_of(spec: ClusterSpec) -> list[Note]:
    """All notes on a valid spec."""
    return [note for rule in NOTES for note in rule(spec)]
