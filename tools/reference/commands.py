"""docs/reference/commands.md: the command lines and their exit codes, from their parsers and docstrings."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

from gpu_fleet import __main__ as package
from tools.reference.markup import ROOT, markdown, page, table

_OTHERS = {"python -m demo": ROOT / "demo" / "__main__.py", "python -m sandbox": ROOT / "sandbox" / "cli.py"}
_CODES = re.compile(r"Exit codes: (?P<codes>.+?)(?:\.\s|\.?$)", re.DOTALL)


def document() -> str:
    codes = [("`python -m gpu_fleet`", code, text) for code, text in _codes(package.__doc__ or "", "gpu_fleet")]
    for name, path in _OTHERS.items():
        codes += [(f"`{name}`", code, text) for code, text in _codes(_docstrings(path), name)]
    return page(
        "Commands and exit codes",
        "the parser in plugins/gpu_fleet/__main__.py",
        "Run the commands from the root of the repository, or of your Airflow project, with `PYTHONPATH=plugins`.",
        *_commands(),
        "## Exit codes\n\n" + table(("command", "exit code", "meaning"), codes),
    )


def _commands() -> Iterator[str]:
    parser = package._parser()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield _section(name, helps.get(name, ""), command)


def _section(name: str, about: str, command: argparse.ArgumentParser) -> str:
    actions = [action for action in command._actions if not isinstance(action, argparse._HelpAction)]
    usage = " ".join(["python -m gpu_fleet", name, *map(_usage, actions)])
    parts = [f"## {name}", f"{about[:1].upper()}{about[1:]}.", f"```console\n{usage}\n```"]
    if actions:
        parts.append(table(("argument", "meaning"), [(f"`{_named(action)}`", action.help or "") for action in actions]))
    return "\n\n".join(parts)


def _named(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar or action.dest)
    return action.option_strings[-1] + (f" {action.metavar or action.dest.upper()}" if action.nargs != 0 else "")


def _usage(action: argparse.Action) -> str:
    optional = bool(action.option_strings) or action.nargs == "?"
    return f"[{_named(action)}]" if optional else _named(action)


def _docstrings(path: Path) -> str:
    """All docstrings of a module's top level, one after the other."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    texts = [ast.get_docstring(tree), *(ast.get_docstring(node) for node in functions)]
    return "\n\n".join(text or "" for text in texts)


def _codes(text: str, name: str) -> Iterator[tuple[str, str]]:
    """``Exit codes: 0 all is well, 1 a cluster file has problems.`` as code and meaning.

    :raises ValueError: if no docstring says it.
    """
    found = _CODES.search(text)
    if found is None:
        raise ValueError(f"no docstring of {name} lists its exit codes ('Exit codes: 0 …, 1 ….')")
    for part in re.split(r"[,;]\s+(?=\d+ )", " ".join(found["codes"].split())):
        code, _, meaning = part.partition(" ")
        yield code, markdown(meaning)
