"""Writes the dated files of instance types and list prices.

::

    python -m tools.catalogue types --karpenter CLONE [--revision REF] [--answers FILE]
    python -m tools.catalogue types --region us-east-1 [--profile NAME]
    python -m tools.catalogue prices --karpenter CLONE [--table CLONE]

``--check`` writes nothing and exits with 1 if the file would change.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.catalogue import ec2, karpenter, prices_file, types_file
from tools.catalogue.checkout import Checkout

TABLE_NAME = "tsaol/aws-gpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.catalogue", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    types = commands.add_parser("types", help=f"write {types_file.FILE.name}")
    source = types.add_mutually_exclusive_group(required=True)
    source.add_argument("--karpenter", type=Path, metavar="CLONE", help=f"a clone of {karpenter.NAME}")
    source.add_argument("--region", help="ask EC2 there instead, with the credentials of the environment")
    types.add_argument("--profile", help="with --region: the profile of the AWS configuration")
    types.add_argument("--answers", type=Path, metavar="FILE", help="recorded DescribeInstanceTypes, for EBS baselines")
    types.add_argument("--answers-name", default="", help="what FILE is, for the file's sources")
    prices = commands.add_parser("prices", help=f"write {prices_file.FILE.name}")
    prices.add_argument("--karpenter", type=Path, metavar="CLONE", required=True)
    prices.add_argument("--table", type=Path, metavar="CLONE", help=f"a clone of {TABLE_NAME}, for the other regions")
    for command in (types, prices):
        command.add_argument("--revision", default="HEAD", help="of Karpenter's clone")
        command.add_argument("--check", action="store_true", help="write nothing")
    return parser


def _text(options: argparse.Namespace) -> tuple[Path, str]:
    if options.command == "types":
        if options.karpenter is None:
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            found = types_file.from_ec2(ec2.ask(options.region, options.profile), options.region, today)
        else:
            clone = Checkout(options.karpenter, karpenter.NAME, options.revision)
            found = types_file.from_karpenter(clone, options.answers, options.answers_name or str(options.answers))
        return types_file.FILE, types_file.written(found)
    clone = Checkout(options.karpenter, karpenter.NAME, options.revision)
    table = None if options.table is None else Checkout(options.table, TABLE_NAME)
    known = json.loads(types_file.FILE.read_text(encoding="utf-8"))["types"]
    return prices_file.FILE, prices_file.written(prices_file.made(clone, table, known))


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    path, text = _text(options)
    if options.check:
        current = path.is_file() and path.read_text(encoding="utf-8") == text
        print(f"{path.name} is {'current' if current else 'not what these sources give'}")
        return 0 if current else 1
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
