"""Images that nodes pull while they are being proven."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from gpu_fleet.core.spec.base import Pattern
from gpu_fleet.core.spec.problems import shortened

#: Images of a pool; each is a pod per node.
MOST_IMAGES = 10


def _image(value: str) -> str:
    return (
        f"{shortened(value)} is not an image; write it with its tag or digest, for example "
        "nvcr.io/nvidia/pytorch:26.06-py3"
    )


#: A reference with a tag or a digest (distribution/reference): without one it would be ``latest``, whatever that is.
Image = Annotated[
    str,
    Pattern(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,254}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|@sha256:[0-9a-f]{64})", _image),
]


def _once(value: tuple[str, ...]) -> tuple[str, ...]:
    for index, each in enumerate(value):
        if each in value[:index]:
            raise ValueError(f"has {shortened(each)} twice; remove one")
    return value


PrePull = Annotated[tuple[Image, ...], AfterValidator(_once), Field(max_length=MOST_IMAGES)]
