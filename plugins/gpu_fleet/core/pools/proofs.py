"""When a run's probes have proven a node, by the cluster's clock."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_fleet.core.pools.assets import outcomes_of_nodes
from gpu_fleet.core.probes.plan import MEASURING
from gpu_fleet.core.validation.report import Outcome, PoolReport


def proven_at(reports: Sequence[PoolReport]) -> dict[str, float]:
    """Node -> when the last proof that it needed had passed; without nodes that any probe of the run found broken."""
    good = {node for node, (outcome, _) in outcomes_of_nodes(reports).items() if outcome is Outcome.PASSED}
    found: dict[str, float] = {}
    for report in reports:
        if report.probe in MEASURING:
            continue
        for node in report.nodes:
            if node.node in good and node.outcome is Outcome.PASSED and node.at is not None:
                found[node.node] = max(node.at, found.get(node.node, 0.0))
    return found
