"""The folder ``include``, and the reader of its templates that tasks hand to ``gpu_fleet.core.manifests.templates``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from gpu_fleet.core.errors import SpecError

#: Overrides the folder that holds clusters, manifests, helm and prices.
INCLUDE_DIR_VARIABLE = "GPU_FLEET_INCLUDE_DIR"


def include_dir() -> Path:
    """``GPU_FLEET_INCLUDE_DIR``, else ``include`` beside ``plugins``, where Airflow's usual project layout has it."""
    override = os.environ.get(INCLUDE_DIR_VARIABLE, "")
    return Path(override) if override else Path(__file__).resolve().parents[4] / "include"


def read_template(name: str) -> dict[str, Any]:
    """The one document of ``include/<name>.yaml``.

    :raises SpecError: if the installation lacks the file or it is not a YAML mapping.
    """
    path = include_dir() / f"{name}.yaml"
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(
            f"template {path} cannot be read: {error.strerror or error}",
            remedy=f"install the folder include beside plugins, or set {INCLUDE_DIR_VARIABLE}",
        ) from error
    except yaml.YAMLError as error:
        raise SpecError(f"template {path} is not valid YAML: {error}", remedy="restore the file") from error
    if not isinstance(value, dict):
        raise SpecError(f"template {path} holds no mapping", remedy="restore the file")
    return value
