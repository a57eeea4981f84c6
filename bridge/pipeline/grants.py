"""What one-shot commands know of the namespaces' labels, where grants select namespaces by them."""

from __future__ import annotations

import threading
from dataclasses import replace

from bridge.core.annotated import Annotated
from bridge.errors import ForbiddenError
from bridge.kube.client import KubeClient
from bridge.kube.namespaces import read_labels, refused
from bridge.retry import RetryPolicy, call
from bridge.telemetry.logs import logger


def with_labels(annotated: Annotated, client: KubeClient, retry: RetryPolicy, stop: threading.Event) -> Annotated:
    """The grants with the labels as they are now; where those may not be read they stay unknown, which is logged."""
    if not annotated.asks_for_labels:
        return annotated
    try:
        return replace(annotated, labels=call(lambda: read_labels(client), retry, stop))
    except ForbiddenError as error:
        logger().warning("grants by label cover nothing new", reason=refused(error))
        return annotated
