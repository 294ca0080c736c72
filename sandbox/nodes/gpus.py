"""The physical GPUs of an instance: stable identities and what ``nvidia-smi`` says about each."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sandbox.nodes.shapes import Shape

DRIVER_VERSION = "580.95.05"
CUDA_VERSION = "13.0"
_NAMESPACE = uuid.UUID("8f1b53a1-34a4-4a0b-9d0e-5f1f0c6f7a11")


@dataclass(frozen=True)
class Product:
    """:ivar smi_name: as ``nvidia-smi`` prints it.  :ivar memory_mib: usable frame buffer."""

    smi_name: str
    compute_capability: str
    family: str
    memory_mib: int


#: By EC2's name. Names and compute capabilities: developer.nvidia.com/cuda-gpus; memory: what the driver reports.
PRODUCTS = {
    "A10G": Product("NVIDIA A10G", "8.6", "ampere", 23028),
    "A100": Product("NVIDIA A100-SXM4-40GB", "8.0", "ampere", 40960),
    "H100": Product("NVIDIA H100 80GB HBM3", "9.0", "hopper", 81559),
    "H200": Product("NVIDIA H200", "9.0", "hopper", 143771),
    "T4": Product("Tesla T4", "7.5", "turing", 15360),
    "T4g": Product("NVIDIA T4G", "7.5", "turing", 15360),
    "V100": Product("Tesla V100-SXM2-16GB", "7.0", "volta", 16384),
    "L4": Product("NVIDIA L4", "8.9", "ada-lovelace", 23034),
    "L40S": Product("NVIDIA L40S", "8.9", "ada-lovelace", 46068),
    "K80": Product("Tesla K80", "3.7", "kepler", 11441),
    "M60": Product("Tesla M60", "5.2", "maxwell", 7613),
}


@dataclass(frozen=True)
class Gpu:
    """One physical GPU."""

    index: int
    uuid: str
    product: Product

    def row(self) -> str:
        """A line of the table that the fake ``nvidia-smi`` reads: tab-separated, see ``bin/driver/nvidia-smi``."""
        memory = str(self.product.memory_mib)
        fields = (str(self.index), self.uuid, self.product.smi_name, DRIVER_VERSION, memory)
        return "\t".join((*fields, self.product.compute_capability))


def gpus_of(instance_id: str, shape: Shape) -> list[Gpu]:
    """The GPUs of an instance; the same instance always has the same UUIDs."""
    product = PRODUCTS.get(shape.gpu_name) or Product(f"NVIDIA {shape.gpu_name}", "8.0", "", shape.gpu_memory_mib)
    return [
        Gpu(index, f"GPU-{uuid.uuid5(_NAMESPACE, f'{instance_id}/{index}')}", product) for index in range(shape.gpus)
    ]
