"""A record of what the EC2NodeClass of a pool was when its nodes were launched; nodes carry only its hash. Pure.

The record is a ConfigMap of this package with one key per pool. It holds the fields of every class hash, and the alias
of every AMI, that a living NodeClaim or the class itself has; the rest is removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER, LABEL_COMPONENT, SYSTEM_NAMESPACE
from gpu_fleet.core.kubernetes.objects import Object, annotations_of
from gpu_fleet.core.nodes.template import CLASS_HASH, Fields, alias_of, class_fields, images_of

CONFIG_MAP_NAME = "node-templates"
COMPONENT = "node-templates"


@dataclass(frozen=True)
class Record:
    """The record of one pool.

    :ivar classes: hash of the EC2NodeClass -> its fields.
    :ivar images: AMI id -> the alias that it was found by.
    """

    classes: Mapping[str, Fields] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)

    def to_text(self) -> str:
        return json.dumps({"classes": dict(self.classes), "images": dict(self.images)}, sort_keys=True)

    @classmethod
    def of(cls, text: str | None) -> Record:
        """The record in a text; empty if there is none or it is damaged: then fewer changes can be named."""
        try:
            value = json.loads(text or "{}")
            classes = {str(key): _texts(item) for key, item in (value.get("classes") or {}).items()}
            return cls(classes, _texts(value.get("images") or {}))
        except (ValueError, AttributeError):
            return cls()


def _texts(value: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(item) for key, item in value.items()}


def records_of(config_map: Object | None) -> dict[str, Record]:
    """Pool -> its record."""
    return {str(pool): Record.of(text) for pool, text in ((config_map or {}).get("data") or {}).items()}


def remembered(record: Record, node_class: Object, claims: Iterable[Object]) -> Record:
    """The record with the class as it is now, and without what no living NodeClaim carries.

    A class whose hash Karpenter has not updated yet adds nothing: its hash belongs to its previous fields.
    """
    claims = list(claims)
    classes, images = dict(record.classes), dict(record.images)
    digest = annotations_of(node_class).get(CLASS_HASH)
    if digest and _settled(node_class):
        # Hash and status are written by two controllers: a hash that is known already may be a late one.
        classes.setdefault(digest, class_fields(node_class))
        if alias := alias_of(node_class):
            images |= dict.fromkeys(images_of(node_class), alias)
    carried = {annotations_of(claim).get(CLASS_HASH) for claim in claims} | {digest}
    used = {str((claim.get("status") or {}).get("imageID") or "") for claim in claims} | set(images_of(node_class))
    return Record(
        {key: value for key, value in sorted(classes.items()) if key in carried},
        {key: value for key, value in sorted(images.items()) if key in used},
    )


def _settled(node_class: Object) -> bool:
    """Whether Karpenter has seen the class as it is: every condition is about the present generation."""
    generation = (node_class.get("metadata") or {}).get("generation")
    conditions = (node_class.get("status") or {}).get("conditions") or []
    return bool(conditions) and all(each.get("observedGeneration") in (None, generation) for each in conditions)


def config_map(cluster: str, data: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": CONFIG_MAP_NAME,
            "namespace": SYSTEM_NAMESPACE,
            "labels": {LABEL_CLUSTER: cluster, LABEL_COMPONENT: COMPONENT},
        },
        "data": dict(data),
    }
