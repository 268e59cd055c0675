"""Explain an error of the Hugging Face hub in one line with what to do and without secrets."""

from collections.abc import Iterator
from contextlib import contextmanager

from mypt.errors import CheckFailed, MyPTError, chain, without_secrets

_TEMPORARY = {408, 412, 429, 500, 502, 503, 504}  # 412: another commit came first


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn the library's errors into MyPTError (the request is wrong) or CheckFailed (the hub, or the way to it)."""
    try:
        yield
    except MyPTError:
        raise
    except Exception as error:
        raise _explanation(place, error) from error


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    temporary = bool(statuses(error) & _TEMPORARY) or any(map(connection_lost, chain(error)))
    return temporary and not has(error, OfflineModeIsEnabled)


def has(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an error, or one that caused it, is of that type."""
    return any(isinstance(item, kind) for item in chain(error))


def statuses(error: BaseException) -> set[int]:
    """The HTTP statuses that the hub answered with."""
    return {getattr(getattr(item, "response", None), "status_code", None) for item in chain(error)} - {None}


def connection_lost(error: BaseException) -> bool:
    """Whether the error is one of the HTTP library itself: the hub did not answer."""
    if getattr(error, "response", None) is not None:
        return False
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(("httpx", "httpcore"))


def endpoint() -> str:
    """The hub's address."""
    from huggingface_hub import constants

    return without_secrets(constants.ENDPOINT)


def reason(error: BaseException) -> str:
    """The first two lines of the message that are not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(" ".join(lines[:2]) if lines else type(error).__name__).rstrip(".")[:300]


def _explanation(place: str, error: Exception) -> MyPTError:
    from huggingface_hub import errors

    if any(map(connection_lost, chain(error))):
        return CheckFailed(f"{place}: the hub at {endpoint()} can't be reached ({reason(error)}); try again")
    if may_pass(error):
        status = max(statuses(error))
        return CheckFailed(f"{place}: the hub fails with status {status} ({reason(error)}); try again later")
    if has(error, errors.GatedRepoError):
        return MyPTError(f"{place} is gated: ask for access on its page, then run `hf auth login`")
    if has(error, errors.RevisionNotFoundError):
        return MyPTError(f"{place}: there is no such revision; leave it out for main")
    if has(error, errors.RepositoryNotFoundError):
        return MyPTError(f"{place}: no such model that you may read; check the name, or run `hf auth login`")
    if 401 in statuses(error):
        return MyPTError("the hub refuses the token; run `hf auth login`, or set HF_TOKEN to a valid one")
    if 403 in statuses(error):
        return MyPTError(f"{place}: your token may not write there; check the name, or the token's permissions")
    return MyPTError(f"{place}: {reason(error)}")
