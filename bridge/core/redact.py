"""Hides what looks like a credential in foreign texts before they are shown: messages of servers, outputs of checks.

Secrets that the bridge knows are replaced where they are known; this is for those that it does not know.
"""

from __future__ import annotations

import re

HIDDEN = "<hidden>"

_SECRETS = (
    re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{3,}"),
    re.compile(r"(?i)((?:id[_-]?token|access[_-]?token|refresh[_-]?token|token|password|passwd|secret|client-key-data"
               r"|authorization)[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&}]+"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){1,2}"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL),
)  # fmt: skip
_USERINFO = re.compile(r"(://)[^/\s@]+@")


def redacted(text: str) -> str:
    scheme, assigned, jwt, key = _SECRETS
    text = scheme.sub(rf"\1 {HIDDEN}", text)
    text = assigned.sub(rf"\1{HIDDEN}", text)
    text = key.sub(HIDDEN, jwt.sub(HIDDEN, text))
    return _USERINFO.sub(rf"\1{HIDDEN}@", text)
