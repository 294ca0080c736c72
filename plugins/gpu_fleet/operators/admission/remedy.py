"""Takes nodes that failed their first proof out of service, as the spec allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.pools.quarantine import Quarantine
from gpu_fleet.core.pools.remediation import Policy
from gpu_fleet.operators.validation.remediation import RemediateNodesOperator


class RemediateUnprovenOperator(RemediateNodesOperator):
    """Quarantines nodes that failed their first proof, so that Karpenter buys others for the pods that wait for them.

    Karpenter counts on a node that is not initialized and ignores its startup taint, so it buys nothing beside one that
    stays closed. A quarantine has another taint and a cordon, which it does not ignore. Each may so lead to one more
    node, and its event to one more run: therefore ``validation.onFailure.budget`` bounds how many nodes are in such a
    quarantine at the same time, over all runs of this DAG, and none is replaced. What is quarantined is judged again by
    the revalidation, which releases it, or replaces it within its own budget if the policy is ``replace``.
    """

    def policy(self) -> Policy:
        policy = super().policy()
        return Policy.QUARANTINE if policy is Policy.REPLACE else policy

    def spent(self, context: Mapping[str, Any], quarantines: Mapping[str, Quarantine]) -> set[str]:
        mine = f"{context['ti'].dag_id}/"
        return {name for name, quarantine in quarantines.items() if quarantine.run.startswith(mine)}
