"""Manifests that the core builds from the frozen spec: building them, showing them, and applying a few by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.spec import ClusterSpec

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient


def as_yaml(manifests: list[dict[str, Any]]) -> str:
    """Manifests as people read them."""
    return yaml.safe_dump_all(manifests, sort_keys=False, default_flow_style=False)


def build_manifests(task_id: str, builder: str, spec: ClusterSpec, args: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The manifests of a builder of ``core/manifests/build.py``.

    :raises SpecError: for a builder that does not exist, or arguments that it does not take.
    """
    try:
        return build(builder, spec, **args)
    except (KeyError, TypeError) as error:
        raise SpecError(f"task {task_id}: {error}", field="builder", remedy="correct the DAG") from error


def ensure_objects(kube: KubeClient, spec: ClusterSpec, builder: str, names: set[str]) -> None:
    """Apply those of a builder's manifests that have one of these names; a no-op if they are as they should be."""
    for manifest in build(builder, spec):
        if manifest["metadata"]["name"] in names:
            kube.apply(manifest)
