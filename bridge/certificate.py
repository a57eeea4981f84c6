"""When a certificate or a token ends: the two dates that a user looks for, read without a cryptography library."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import ssl
from datetime import UTC, datetime


def certificate_end(pem: bytes) -> datetime | None:
    """The end of the first certificate in `pem`, None when there is none that can be read.

    X.509 (RFC 5280, 4.1): Certificate > tbsCertificate > [version], serial, algorithm, issuer, validity > two times.
    """
    with contextlib.suppress(ValueError, IndexError, binascii.Error):
        text = pem.decode("ascii", "replace")
        begin, end = text.index(ssl.PEM_HEADER), text.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
        der = ssl.PEM_cert_to_DER_cert(text[begin:end])
        at, _ = _inside(der, 0)
        at, _ = _inside(der, at)
        if der[at] == 0xA0:  # the version, which version 1 leaves out
            at = _behind(der, at)
        for _field in ("serial", "algorithm", "issuer"):
            at = _behind(der, at)
        at, _ = _inside(der, at)
        at = _behind(der, at)
        start, stop = _inside(der, at)
        digits = der[start:stop].decode("ascii")
        if der[at] == 0x17:  # UTCTime has two digits of the year
            digits = ("19" if int(digits[:2]) >= 50 else "20") + digits
        return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    return None


def token_end(token: str) -> datetime | None:
    """The end that a JWT names, None for tokens of another kind and those without an end. Nothing is verified."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError):
        _, claims, _ = token.split(".")
        found = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return datetime.fromtimestamp(float(found["exp"]), UTC)
    return None


def _inside(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins and ends."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(der[start : start + count], "big"), start + count
    if start + length > len(der):
        raise ValueError("an element is cut off")
    return start, start + length


def _behind(der: bytes, at: int) -> int:
    return _inside(der, at)[1]
