"""Texts that real systems were seen to print, with the reason, the type and the remedy that each must get.

One file per source of texts; an entry is one line or a few, so a new report is a new entry. Names of accounts, clusters
and hosts are replaced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_FOLDER = Path(__file__).parent


def entries(name: str) -> list[dict[str, Any]]:
    """The entries of one file.

    :raises ValueError: the file is empty, or an entry is there twice: a test over it would prove nothing.
    """
    found: list[dict[str, Any]] = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    texts = [
        str({key: value for key, value in each.items() if key not in {"remedy", "reason"}}) for each in found or []
    ]
    if not texts or len(set(texts)) != len(texts):
        raise ValueError(f"tests/corpus/{name}.yaml is empty or has an entry twice")
    return found
