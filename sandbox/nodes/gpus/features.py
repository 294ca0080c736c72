"""The labels that GPU feature discovery puts on a node (NVIDIA/k8s-device-plugin ``internal/lm``)."""

from __future__ import annotations

from sandbox.nodes.gpus.physical import DRIVER_VERSION, Gpu, cuda_version
from sandbox.nodes.gpus.plugin_config import GPU_RESOURCE, Sharing, Strategy

_LEAST_MPS_CAPABILITY = (7, 0)  # Volta (docs.nvidia.com/deploy/mps)


def feature_labels(
    gpus: list[Gpu], sharing: Sharing, instance_type: str, driver_version: str = DRIVER_VERSION
) -> dict[str, str]:
    """Nothing for a node without GPUs.

    ``gpu.count`` is the physical count, regardless of sharing; the product gets ``-SHARED`` unless the resource itself
    has another name.
    """
    if not gpus:
        return {}
    product = gpus[0].product
    name = product.smi_name.replace(" ", "-")
    if sharing.strategy is not Strategy.NONE and sharing.resource == GPU_RESOURCE:
        name += "-SHARED"
    major, _, minor = product.compute_capability.partition(".")
    cuda = cuda_version(driver_version)
    cuda_major, _, cuda_minor = cuda.partition(".")
    driver = [*driver_version.split("."), "", ""]
    return {
        "nvidia.com/gpu.count": str(len(gpus)),
        "nvidia.com/gpu.replicas": str(sharing.replicas),
        "nvidia.com/gpu.sharing-strategy": str(sharing.strategy),
        "nvidia.com/gpu.product": name,
        "nvidia.com/gpu.memory": str(product.memory_mib),
        "nvidia.com/gpu.family": product.family,
        "nvidia.com/gpu.compute.major": major,
        "nvidia.com/gpu.compute.minor": minor,
        "nvidia.com/gpu.machine": instance_type,
        "nvidia.com/cuda.driver-version.full": driver_version,
        "nvidia.com/cuda.driver-version.major": driver[0],
        "nvidia.com/cuda.driver-version.minor": driver[1],
        "nvidia.com/cuda.driver-version.revision": driver[2],
        "nvidia.com/cuda.runtime-version.full": cuda,
        "nvidia.com/cuda.runtime-version.major": cuda_major,
        "nvidia.com/cuda.runtime-version.minor": cuda_minor,
        "nvidia.com/mps.capable": str((int(major), int(minor)) >= _LEAST_MPS_CAPABILITY).lower(),
        "nvidia.com/mig.strategy": "none",
    }
