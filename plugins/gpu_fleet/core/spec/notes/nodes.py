"""Notes on what nodes are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpu_fleet.core.spec.node_class import Family
from gpu_fleet.core.spec.node_class.fast_start import fast_start, large_enough
from gpu_fleet.core.spec.node_class.node_config import node_configs
from gpu_fleet.core.spec.node_rules import used
from gpu_fleet.core.spec.problems import Note

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec


def fast_start_says_what_it_does(spec: ClusterSpec) -> Iterator[Note]:
    for each in used(spec):
        if not each.node_class.fast_start:
            continue
        found = fast_start(each.node_class, each.pool.instance_types)
        words = [*found.done, *found.left_out]
        if each.node_class.family is Family.BOTTLEROCKET and not (found.volume and found.volume.snapshot):
            words.append("every image is pulled by each node; a data volume of a snapshot (volume.snapshot) has them")
        yield Note(each.field("fast_start", "fastStart"), f"pool {each.pool.name}: {'; '.join(words)}")


def parallel_pulls_may_be_slower(spec: ClusterSpec) -> Iterator[Note]:
    """The gate set by hand, where nodeadm ignores it or recommends against it."""
    for each in used(spec):
        if each.node_class.family is not Family.AL2023 or not each.node_class.user_data or each.node_class.fast_start:
            continue
        gates = [
            ((config.get("spec") or {}).get("featureGates") or {}) for config in node_configs(each.node_class.user_data)
        ]
        small = [name for name in each.pool.instance_types if not large_enough(name)]
        if any(gate.get("FastImagePull") for gate in gates) and small:
            yield Note(
                each.field("user_data", "userData"),
                f"FastImagePull is recommended for 2xlarge and larger; {', '.join(small)} of pool {each.pool.name} is "
                "smaller, and below 4 vCPUs nodeadm ignores it",
            )


def metadata_reaches_pods(spec: ClusterSpec) -> Iterator[Note]:
    for each in used(spec):
        options = each.node_class.metadata_options
        if options is not None and options.http_put_response_hop_limit > 1:
            yield Note(
                each.field("metadata_options", "metadataOptions.httpPutResponseHopLimit"),
                f"pods on nodes of pool {each.pool.name} can use the node's role; 1 prevents that",
            )
