"""Notes on Capacity Blocks: who else acts at their end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpu_fleet.core.spec.problems import Note

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec

#: Seconds before the end of a block at which Karpenter begins to drain; it looks once a minute
#: (aws/karpenter-provider-aws v1.14.1 pkg/controllers/capacityreservation/expiration/controller.go).
KARPENTER_DRAINS_S = 40 * 60


def karpenter_drains_before_the_package_is_done(spec: ClusterSpec) -> Iterator[Note]:
    for index, pool in enumerate(spec.node_pools):
        block = pool.capacity_block
        if block is not None and block.empty_before < KARPENTER_DRAINS_S:
            yield Note(
                f"nodePools[{index}].capacityBlock.emptyBefore",
                f"is {block.empty_before.text}, and Karpenter begins to drain 40 minutes before the end of the block: "
                "from then on it evicts pods as well, within their budgets; write 45m to be done before",
            )
