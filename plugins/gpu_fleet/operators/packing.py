"""Values as short text for Airflow's task state store."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any


def pack(value: Any) -> str:
    """A JSON-able value as compressed text: the store warns of more than 64 kB, which forty nodes' reports are."""
    return base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()


def unpack(text: str) -> Any:
    """The value that :func:`pack` was given."""
    return json.loads(zlib.decompress(base64.b64decode(text)))
