"""Looks up what a pool's NodePool and NodeOverlay need beyond the spec: hardware in EC2, prices in files."""

from __future__ import annotations

from gpu_fleet.core.aws.hardware import Hardware, hardware_of
from gpu_fleet.core.manifests.pool_facts import PoolFacts
from gpu_fleet.core.spec import ClusterSpec, NodePool
from gpu_fleet.hooks.aws import aws_session
from gpu_fleet.hooks.files.prices import load_prices


def hardware(spec: ClusterSpec, pool: NodePool) -> Hardware:
    """The pool's hardware according to EC2, the only source of physical GPUs for gates, placeholders and overlays.

    :raises SpecError: instance types that EC2 does not know, without NVIDIA GPU, or with different numbers of GPUs.
    """
    session = aws_session(spec.aws.connection, spec.region)
    described = session.paginate(
        "ec2", "describe_instance_types", "InstanceTypes", InstanceTypes=list(pool.instance_types)
    )
    return hardware_of(described, pool.instance_types)


def pool_facts(spec: ClusterSpec, pool: NodePool) -> PoolFacts:
    """
    :raises SpecError: see :func:`hardware`; or a price list that cannot be used.
    """
    return PoolFacts(hardware(spec, pool), load_prices(spec.region))
