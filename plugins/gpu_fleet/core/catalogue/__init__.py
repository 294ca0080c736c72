"""The instance types with NVIDIA GPUs and their list prices, as dated files say: for what is decided without AWS.

``python -m tools.catalogue`` makes the files. Each is read at the first question, not at the import: parsing a DAG file
reads the types (well under a millisecond) and never the prices.
"""

from gpu_fleet.core.catalogue.prices import DatedPrices, dated_prices, priced_regions
from gpu_fleet.core.catalogue.types import CatalogueType, catalogue_date, find, whole_gpu_types

__all__ = [
    "CatalogueType",
    "DatedPrices",
    "catalogue_date",
    "dated_prices",
    "find",
    "priced_regions",
    "whole_gpu_types",
]
