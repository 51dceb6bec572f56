"""The huggingface_hub client: its token, and its errors as HubError.

Only public functions that its versions 0.36, 1.x and 2.x share are used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ckptdiff import __version__
from ckptdiff.errors import CkptdiffError, HubError, RevisionError
from ckptdiff.hub.ids import HubId
from ckptdiff.lazy import huggingface_hub
from ckptdiff.machine import machine_error

LIBRARY_NAME = "ckptdiff"
"""What the client calls itself in requests."""
NETWORK_PACKAGES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "hf_xet"}
"""Packages for network access, whose errors the client does not catch."""
_token: ContextVar[str | None] = ContextVar("token", default=None)
TOKEN_PATTERN = re.compile(r"hf_[A-Za-z0-9_]{4,}")


@contextmanager
def use_token(token: str | None) -> Iterator[None]:
    """Send a token with the requests made inside, instead of ``HF_TOKEN`` or the one that `hf auth login` stored; None: as without this."""
    before = _token.set(token)
    try:
        yield
    finally:
        _token.reset(before)


def current_token() -> str | None:
    """The token of :func:`use_token`; None outside of it."""
    return _token.get()


def client() -> Any:
    """A ``huggingface_hub.HfApi`` that identifies itself as ckptdiff."""
    return huggingface_hub.HfApi(token=current_token(), library_name=LIBRARY_NAME, library_version=__version__)


def is_offline() -> bool:
    """Whether the client may only use its cache (``HF_HUB_OFFLINE=1``)."""
    return bool(huggingface_hub.constants.HF_HUB_OFFLINE)


@contextmanager
def translate_errors(hub_id: HubId, first: str = "") -> Iterator[None]:
    """Turn an error of the client into a HubError that says what to do, and in which tokens are masked.

    Args:
        hub_id: the repo that is asked for.
        first: text to put before the message that the Hub cannot be reached.
    """
    errors = huggingface_hub.errors
    try:
        yield
    except errors.GatedRepoError:
        raise HubError(
            f"{hub_id.repo}: is gated: ask for access at {endpoint()}/{hub_id.repo}, then log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise RevisionError(
            f"{hub_id.repo}: has no revision {hub_id.revision}: give a branch, a tag or a commit that it has, or none for its main branch"
        ) from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"{hub_id.repo}: no such file or folder here, and no such repo at {endpoint()}, or your token has no access to it "
            "(log in with `hf auth login`, or set HF_TOKEN)"
        ) from None
    except errors.HfHubHTTPError as error:
        raise HubError(f"{hub_id.repo}: {_describe_http_error(error)}") from None
    except Exception as error:
        translated = _translate_other_error(error, hub_id, first)
        if translated is None:
            raise
        raise translated from None


def _translate_other_error(error: Exception, hub_id: HubId, first: str) -> CkptdiffError | None:
    """The error to raise instead of one that is not an answer of the Hub; None if it is a programming error."""
    lacking = machine_error(error)
    if lacking is not None:
        return lacking
    unreachable = (ConnectionError, huggingface_hub.errors.OfflineModeIsEnabled)
    if type(error).__module__.partition(".")[0] in NETWORK_PACKAGES or isinstance(error, unreachable):
        return HubError(f"{hub_id.repo}: {first}{endpoint()} cannot be reached: {redact(str(error))}; try again")
    if isinstance(error, (OSError, RuntimeError, ValueError)) and type(error).__module__ != "builtins":
        return HubError(f"{hub_id.repo}: {redact(str(error))}")
    if isinstance(error, RuntimeError):  # hf_xet raises nothing else
        return HubError(f"{hub_id.repo}: {redact(str(error))}; for a Hub without Xet set HF_HUB_DISABLE_XET=1")
    return None


def endpoint() -> str:
    """The address of the Hub (``HF_ENDPOINT``)."""
    return str(huggingface_hub.constants.ENDPOINT)


STATUS_ADVICE = {
    401: "there is no valid token: log in with `hf auth login`, or set HF_TOKEN",
    403: "your token may not do this: it needs write access to the repo, or the repo is gated",
    404: "not found",
    412: "the repo has changed meanwhile: run again",
    429: "too many requests: wait, and run again",
}
"""What a status code of the Hub's answer means, and what to do."""


def _describe_http_error(error: Any) -> str:
    """What to say of an HTTP error: by its status if there is one, with the Hub's own message behind."""
    status = getattr(error.response, "status_code", None)
    message = error.server_message or ""
    text = STATUS_ADVICE.get(int(status), f"the Hub answered {status}: run again") if status else str(error)
    return redact(f"{text}{f' ({message})' if message else ''}")


def redact(text: str) -> str:
    """A text of the client as one line of at most 400 characters, with tokens masked."""
    for secret in {current_token(), os.environ.get("HF_TOKEN")} - {None, ""}:
        text = text.replace(str(secret), "***")
    return TOKEN_PATTERN.sub("***", " ".join(text.split()))[:400]
