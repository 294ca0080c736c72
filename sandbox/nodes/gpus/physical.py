"""The physical GPUs of an instance: stable identities and the facts that ``nvidia-smi`` reports."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sandbox.aws.shapes import Shape

DRIVER_VERSION = "580.95.05"
#: The newest CUDA that a driver branch supports (CUDA toolkit release notes, table 'CUDA Toolkit and Driver Versions').
_CUDA = {
    580: "13.0", 575: "12.9", 570: "12.8", 565: "12.7", 560: "12.6", 555: "12.5", 550: "12.4", 535: "12.2", 525: "12.0",
}  # fmt: skip
_OLDEST_CUDA = "11.4"
_NAMESPACE = uuid.UUID("8f1b53a1-34a4-4a0b-9d0e-5f1f0c6f7a11")


@dataclass(frozen=True)
class Product:
    """
    :ivar smi_name: as ``nvidia-smi`` prints it.
    :ivar memory_mib: usable frame buffer.
    :ivar multiprocessors: streaming multiprocessors (``CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT``).
    """

    smi_name: str
    compute_capability: str
    family: str
    memory_mib: int
    multiprocessors: int


#: By EC2's name. Names and compute capabilities: developer.nvidia.com/cuda-gpus; memory: what the driver reports;
#: multiprocessors: NVIDIA's data sheets.
PRODUCTS = {
    "A10G": Product("NVIDIA A10G", "8.6", "ampere", 23028, 80),
    "A100": Product("NVIDIA A100-SXM4-40GB", "8.0", "ampere", 40960, 108),
    "H100": Product("NVIDIA H100 80GB HBM3", "9.0", "hopper", 81559, 132),
    "H200": Product("NVIDIA H200", "9.0", "hopper", 143771, 132),
    "T4": Product("Tesla T4", "7.5", "turing", 15360, 40),
    "T4g": Product("NVIDIA T4G", "7.5", "turing", 15360, 40),
    "V100": Product("Tesla V100-SXM2-16GB", "7.0", "volta", 16384, 80),
    "L4": Product("NVIDIA L4", "8.9", "ada-lovelace", 23034, 58),
    "L40S": Product("NVIDIA L40S", "8.9", "ada-lovelace", 46068, 142),
    "K80": Product("Tesla K80", "3.7", "kepler", 11441, 13),
    "M60": Product("Tesla M60", "5.2", "maxwell", 7613, 16),
}


@dataclass(frozen=True)
class Gpu:
    """One physical GPU."""

    index: int
    uuid: str
    product: Product

    def row(self, driver: str = DRIVER_VERSION) -> str:
        """A line of the table that the fake ``nvidia-smi`` and the fake ``libcuda`` read: tab-separated, see
        ``bin/driver/nvidia-smi``."""
        memory = str(self.product.memory_mib)
        fields = (str(self.index), self.uuid, self.product.smi_name, driver, memory, self.product.compute_capability)
        return "\t".join((*fields, cuda_version(driver), str(self.product.multiprocessors)))


def cuda_version(driver: str) -> str:
    """The newest CUDA that a driver supports."""
    branch = int(driver.partition(".")[0])
    return next((cuda for least, cuda in sorted(_CUDA.items(), reverse=True) if branch >= least), _OLDEST_CUDA)


def gpus_of(instance_id: str, shape: Shape) -> list[Gpu]:
    """The GPUs of an instance; the same instance always has the same UUIDs."""
    product = PRODUCTS.get(shape.gpu_name) or Product(f"NVIDIA {shape.gpu_name}", "8.0", "", shape.gpu_memory_mib, 80)
    return [gpu_of(instance_id, index, product) for index in range(shape.gpus)]


def gpu_of(instance_id: str, index: int, product: Product) -> Gpu:
    return Gpu(index, f"GPU-{uuid.uuid5(_NAMESPACE, f'{instance_id}/{index}')}", product)
