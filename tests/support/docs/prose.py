"""`make lint`: documents, messages, help texts, docstrings and comments read like those of Kubernetes and Prometheus.

Each line of the table is an expression and what to write instead. `words` keeps private words out of names as well;
this reads prose alone: of Python the docstrings, comments and strings that contain a space, of other files everything
but code. CHANGELOG.md is not read: it quotes what things were called.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

PHRASES: Mapping[str, str] = {
    "a person": "a user, an operator",
    "a person's": "a user's, an operator's",
    "anew": "again, from scratch",
    "anybody": "anyone, any client",
    "are said": "are reported",
    "are told": "are notified, are reported",
    "at rest": "in steady state",
    "be said": "be reported",
    "become of": "happen to",
    "becomes of": "happens to",
    "came of": "resulted from",
    "comes of": "results from",
    "errand": "pending change",
    "for ever": "without limit, until ...",
    "gives way": "yields, backs off",
    "hands over": "passes",
    "hear": "learn",
    "heard": "learned",
    "hears": "learns",
    "in anybody's hands": "in progress",
    "in hand": "in flight, in progress",
    "in somebody's hands": "in progress",
    "is looked at": "is checked",
    "is looked whether": "the bridge checks whether",
    "is news": "is reported",
    "is said": "is reported, is logged",
    "is told": "is notified, learns",
    "let go of": "released",
    "living service": "running service",
    "marks of ownership": "ownership labels",
    "mend": "fix",
    "mended": "fixed",
    "mends": "fixes",
    "nobody": "no user, no replica, no thread, ...",
    "none of our business": "not ours",
    "obey": "honour",
    "obeyed": "honoured",
    "obeys": "honours",
    "other rooms": "other packages",
    "our marks": "our labels",
    "patience": "the timeout, the limit",
    "patient": "name the limit, the unhealthy side",
    "people's": "users'",
    "ran wild": "was faulty",
    "seldom": "rarely",
    "sick": "unhealthy",
    "sleeps on": "keeps waiting",
    "somebody": "a user, another client, ...",
    "stand there": "exist",
    "stands there": "exists",
    "the others": "say which: the other replicas, instances, namespaces",
    "this room": "this module",
    "to be told": "to be notified, to be reported",
    "to blame": "at fault",
    "told of": "reported",
    "was said": "was reported",
    "was told": "was notified",
    "way out": "how to fix it",
    "what is said": "the report, the message",
    "what stands": "the existing objects",
    "whatever stands": "whatever exists",
    "whichever replica": "the replica that",
    "whoever": "the user, the client, ... that",
    "whosoever": "the user, the client, ... that",
    "wishes": "requests",
    "without a word": "without an error, silently",
}
"""Expression: what to write instead."""

ALLOWED: Mapping[tuple[str, str], str] = {
    ("tests/e2e/test_image.py", "nobody"): "a user of a kubeconfig",
    ("tests/loop/test_check.py", "nobody"): "a Service of that name",
    ("tests/unit/kube/test_client.py", "nobody"): "a user of a kubeconfig",
}
"""(File, expression): why it is right there."""

EVERYWHERE = (
    "bridge",
    "demo",
    "docs",
    "image",
    "manifests",
    "tests",
    "Dockerfile",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "docker-compose.yml",
)
"""Where prose is read, below the root; further places are arguments of the command, as in `... prose tests`."""

ABOUT_PROSE = frozenset({"tests/support/docs/prose.py", "tests/unit/docs/test_prose.py"})
"""Files that quote the expressions."""

KINDS = frozenset({"", ".py", ".md", ".yaml", ".yml", ".js", ".html", ".tpl", ".txt"})

PROSE_TOKENS = frozenset({tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)})

CODE = re.compile(r"^ *(```).*?^ *\1|`[^`\n]*`|\]\([^)\n]*\)", re.MULTILINE | re.DOTALL)
"""What is quoted in a document: blocks, names, targets of links."""


FIELD = re.compile(r"\{[^{}\n]*\}")
"""A value that is put into a string."""


def prose(text: str, suffix: str) -> str:
    """The text with everything that is not prose blanked: each character keeps its line."""
    return CODE.sub(lambda match: re.sub(r"[^\n]", ".", match[0]), _of_python(text) if suffix == ".py" else text)


def _of_python(source: str) -> str:
    """Comments, and strings that contain a space. What encloses them becomes dots, so that no expression spans two."""
    lines = [re.sub(r"\S", ".", line) for line in source.splitlines(keepends=True)]
    original = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in PROSE_TOKENS or (token.type != tokenize.COMMENT and " " not in token.string):
            continue
        (first, start), (last, end) = token.start, token.end
        for row in range(first, last + 1):
            line = original[row - 1]
            left, right = start if row == first else 0, end if row == last else len(line)
            shown = FIELD.sub(lambda match: "." * len(match[0]), line[left:right]).replace("#", " ")
            lines[row - 1] = lines[row - 1][:left] + shown + lines[row - 1][right:]
    return "".join(lines)


def found_in(text: str, suffix: str, phrases: Mapping[str, str] = PHRASES) -> Iterator[tuple[int, str, str]]:
    """Line number, expression and what to write instead, also where a line break stands within."""
    longest_first = [r"\s+".join(map(re.escape, p.split())) for p in sorted(phrases, key=len, reverse=True)]
    pattern = re.compile(rf"(?<!\w)({'|'.join(longest_first)})(?!\w)", re.IGNORECASE)
    shown = prose(text, suffix)
    for match in pattern.finditer(shown):
        phrase = " ".join(match[1].lower().split())
        yield shown.count("\n", 0, match.start()) + 1, phrase, phrases[phrase]


def files(further: Sequence[str] = ()) -> Sequence[Path]:
    """Everything that is text in these places."""
    places = [ROOT / name for name in (*EVERYWHERE, *further)]
    below = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return [
        path
        for path in below
        if path.suffix in KINDS and path.is_file() and str(path.relative_to(ROOT)) not in ABOUT_PROSE
    ]


def main(further: Sequence[str] = ()) -> int:
    """Print what was found, `further` places included; the exit status is 1 then."""
    found = [
        f'{name}:{number}: "{phrase}"; write: {instead}'
        for path in files(further)
        for name in (str(path.relative_to(ROOT)),)
        for number, phrase, instead in found_in(path.read_text(encoding="utf-8"), path.suffix)
        if (name, phrase) not in ALLOWED
    ]
    print("\n".join(found) or f"prose: none of {len(PHRASES)} expressions is used")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
