"""The cluster spec's JSON schema, for editors."""

from __future__ import annotations

import json

from gpu_fleet.core.spec.cluster import ClusterSpec


def schema_text() -> str:
    """JSON schema (draft 2020-12) of a cluster file, with every field's description; ends with a newline.

    It knows the fields, not the rules between them: ``python -m gpu_fleet validate`` has the last word.
    """
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ClusterSpec.model_json_schema(by_alias=True, mode="validation"),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
