"""The public names for Helm releases: ``gpu_fleet.helm``, and the paths that DAGs have used before."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import gpu_fleet.helm
import gpu_fleet.hooks.helm
import gpu_fleet.operators.helm

FACES = ("gpu_fleet.helm", "gpu_fleet.hooks.helm", "gpu_fleet.operators.helm")


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_is_the_class_of_that_name(face: str) -> None:
    module = importlib.import_module(face)
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name).__name__ == name


@pytest.mark.parametrize("face", FACES)
def test_a_name_that_is_not_public_is_an_import_error(face: str) -> None:
    with pytest.raises(AttributeError, match="HelmReleaseOperators"):
        getattr(importlib.import_module(face), "HelmReleaseOperators")  # noqa: B009  (an import asks the same way)


def test_the_paths_of_earlier_versions_name_the_same_classes() -> None:
    from gpu_fleet.hooks.helm import HelmHook
    from gpu_fleet.operators.helm import (
        HelmReleaseOperator,
        HelmRollbackOperator,
        HelmTestOperator,
        HelmUninstallOperator,
    )
    from gpu_fleet.sensors.helm import HelmReleaseSensor

    earlier = (
        HelmHook,
        HelmReleaseOperator,
        HelmReleaseSensor,
        HelmRollbackOperator,
        HelmTestOperator,
        HelmUninstallOperator,
    )
    for found in earlier:
        assert getattr(gpu_fleet.helm, found.__name__) is found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spared"),
    [
        pytest.param("HelmReleaseOperator", ("gpu_fleet.triggers", "gpu_fleet.core.gates"), id="operator"),
        pytest.param("HelmReleaseSensor", ("gpu_fleet.core.gates.registry",), id="sensor"),
    ],
)
def test_a_dag_file_loads_neither_clients_nor_the_models_of_cluster_files(name: str, spared: tuple[str, ...]) -> None:
    heavy = (*spared, "gpu_fleet.core.spec", "gpu_fleet.hooks", "boto3", "kubernetes")
    program = (
        f"import sys; from gpu_fleet.helm import {name}; print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
