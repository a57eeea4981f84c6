"""Who we are to the API server: what a SelfSubjectReview answers."""

from __future__ import annotations

import json
from dataclasses import dataclass

from bridge.errors import TransientError
from bridge.kube.client import KubeClient

_PATH = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
_BODY = b'{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}'


@dataclass(frozen=True, slots=True)
class User:
    """A user as the API server sees it, after impersonation."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()


def who_am_i(client: KubeClient) -> User | None:
    """Ask the API server who sends our requests; None where it does not tell (Kubernetes before 1.28).

    Raises the errors of a request, TransientError when the answer is something else.
    """
    answer = client.request("POST", _PATH, body=_BODY, allow=frozenset({403, 404}))
    if answer.status in (403, 404):
        return None
    try:
        info = json.loads(answer.body)["status"]["userInfo"]
        return User(
            str(info.get("username") or ""), str(info.get("uid") or ""), tuple(map(str, info.get("groups") or ()))
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TransientError("the answer to a SelfSubjectReview is no SelfSubjectReview") from error
