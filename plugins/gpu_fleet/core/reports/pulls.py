"""The part of a pool's report about images that its nodes pulled while they were being proven."""

from __future__ import annotations

from collections.abc import Iterator

from gpu_fleet.core.markup.blocks import Block, Heading, Note, Table, clean, code, text
from gpu_fleet.core.reports.model import PoolSection

#: Most pulls that are listed.
LISTED = 50


def pulls_of(pool: PoolSection) -> Iterator[Block]:
    """Seconds per node and image, and why images are missing; nothing where none were to be pulled."""
    if not pool.pre_pull:
        return
    yield Heading(3, "Images pulled before jobs")
    pulls = [(node, image, took) for node, images in pool.pre_pull["pulls"].items() for image, took in images.items()]
    if pulls:
        rows = tuple((code(node), code(image), text(_words(took))) for node, image, took in pulls[:LISTED])
        yield Table("Images pulled while the nodes were being proven", ("node", "image", "took"), rows)
    if len(pulls) > LISTED:
        yield Note(f"and {len(pulls) - LISTED} more")
    if pool.pre_pull["failure"]:
        yield Note(clean(f"Not all images were pulled: {pool.pre_pull['failure']}"))


def _words(took: float | None) -> str:
    if took is None:
        return "not known"
    return "was there" if took == 0 else f"{took:.1f} s"
