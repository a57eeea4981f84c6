"""`make lint`: a class with more than 15 instance attributes says beside itself why it is not several.

What is counted: every name that a method of the class assigns as `self.NAME`, and the fields of a dataclass that may
change. Not counted: frozen dataclasses, named tuples, models of settings and everything else that assigns nothing to
itself. They are values: one function makes them, and nothing keeps them right.

The reason is a comment in the class: `# attributes: WHY`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MOST = 15
REASON = re.compile(r"^\s*# attributes: (\S.{19,})$", re.MULTILINE)


def attributes(made: ast.ClassDef) -> set[str]:
    """Names of what an instance keeps and may change."""
    fields = {
        item.target.id
        for item in made.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and _is_changing_dataclass(made)
    }
    methods = (item for item in made.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
    return fields | {name for method in methods for name in _assigned(method)}


def _is_changing_dataclass(made: ast.ClassDef) -> bool:
    return any(re.match(r"(dataclasses\.)?dataclass\b", said) and "frozen=True" not in said
               for said in map(ast.unparse, made.decorator_list))  # fmt: skip


def _assigned(method: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Names that a method assigns to its first argument."""
    first = method.args.args[0].arg if method.args.args else ""
    for node in ast.walk(method):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == first
        ):
            yield node.attr


def found_in(text: str) -> Iterator[tuple[int, str]]:
    """Line number and what is wrong there."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            count, reason = len(attributes(node)), REASON.search("\n".join(lines[node.lineno : node.end_lineno]))
            if count > MOST and reason is None:
                yield (
                    node.lineno,
                    f"{node.name} has {count} attributes: split it, or say why not in a comment `# attributes: WHY`",
                )


def main() -> int:
    """Print what was found; the exit status is 1 then."""
    said = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted((ROOT / "bridge").rglob("*.py"))
        for line, text in found_in(path.read_text(encoding="utf-8"))
    ]
    print("\n".join(said) or f"no class has more than {MOST} attributes without a reason")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
