"""Asking the Hugging Face hub, and what is said where it does not answer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def asking_hub(what: str, variable: str, kind: type[Exception]) -> Iterator[None]:
    """Raises `kind` in two sentences where the hub does not give `what`, which `variable` may name too."""
    try:
        yield
    except Exception as error:  # offline, moved, gated, disk full: of many kinds, and not all an OSError
        if isinstance(error, kind):
            raise
        why = str(error).partition("\n")[0] if type(error) is OSError else type(error).__name__
        remedy = endpoint_fault(os.environ) or "Check name, network and access, set HF_ENDPOINT to a mirror"
        failed = f"{what} could not be had from the hub ({why})."
        raise kind(f"{failed} {remedy}, or set {variable} to a local folder.") from error


def endpoint_fault(environ) -> str | None:
    """What is wrong with HF_ENDPOINT, and the remedy; None where nothing is."""
    endpoint = environ.get("HF_ENDPOINT") or "https://"
    right = f"set HF_ENDPOINT=https://{endpoint.rpartition('//')[2]} and start again"
    faulty = not endpoint.startswith(("http://", "https://"))
    return f"HF_ENDPOINT={endpoint} has no https:// in front: {right}" if faulty else None
