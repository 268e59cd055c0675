"""fsspec's clients of object stores, set up by the usual environment of each store, and what their errors mean."""

import errno
import logging
import os
from functools import cache
from typing import NamedTuple

from mypt.errors import MyPTError, chain, without_secrets


class Scheme(NamedTuple):
    """What a scheme of fsspec's needs.

    form: A URI of it, for messages; None: of another scheme that means the same.
    login: What lets a user in, for messages.
    package: What serves it, and our extra that installs it; None: nothing.
    tries_itself: Its client tries for about a minute, and cannot be kept from it.
    """

    form: str | None
    login: str
    package: tuple[str, str] | None = None
    tries_itself: bool = False


_AZURE = (
    "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_ACCOUNT_KEY, or "
    "AZURE_STORAGE_CONNECTION_STRING"
)
SCHEMES = {
    "s3": Scheme(
        "s3://bucket/path",
        "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`aws configure`)",
        ("s3fs", "s3"),
    ),
    "gs": Scheme(
        "gs://bucket/path",
        "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
        ("gcsfs", "gcs"),
        tries_itself=True,
    ),
    "az": Scheme("az://container/path", _AZURE, ("adlfs", "azure"), tries_itself=True),
    "abfs": Scheme(None, _AZURE, ("adlfs", "azure"), tries_itself=True),
    "file": Scheme("file:///path", "the permissions of the folder"),
}
# Variables that hold a secret: their values must not reach a file that is sent, or a message.
SECRETS = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET", "HF_TOKEN",
)  # fmt: skip
_TEMPORARY = {408, 429, 500, 502, 503, 504}  # HTTP statuses
_BUSY = (errno.EBUSY, errno.EREMOTEIO if hasattr(errno, "EREMOTEIO") else errno.EIO)  # what s3fs makes of them
_LIBRARIES = ("aiohttp", "botocore", "requests", "urllib3", "azure", "gcsfs", "google")
_LOST = (  # names of their errors for a connection that was not made, or was lost
    "ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError", "EndpointConnectionError",
    "ConnectionClosedError", "HTTPClientError", "ReadTimeoutError", "ConnectTimeoutError", "ResponseStreamingError",
    "ConnectionError", "Timeout", "ProxyError", "ServiceRequestError", "ServiceResponseError", "IncompleteRead",
    "ChecksumError", "IncompleteReadError", "TransportError",
)  # fmt: skip
_TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60}  # seconds


@cache
def file_system(uri: str):
    """The client for a URI. Raises MyPTError if the package that serves it is not installed."""
    from fsspec.core import url_to_fs

    scheme = uri.partition("://")[0]
    options: dict = {"use_listings_cache": False}
    if scheme == "s3":  # tries are counted in one place, `mypt.remote.place`
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **_TIMEOUTS}
    elif scheme == "gs" and os.environ.get("STORAGE_EMULATOR_HOST"):
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # emulators have one interface only
        options["token"] = "anon"
    elif scheme == "file":
        options = {"auto_mkdir": True}
    try:
        client, _ = url_to_fs(uri, **options)
    except ImportError as error:
        package, extra = SCHEMES[scheme].package
        raise MyPTError(f'{scheme}:// needs the package {package}: pip install "mypt[{extra}]" ({error})') from None
    except ValueError as error:  # of adlfs: no account is named
        raise MyPTError(f"{uri}: {reason(error)}; set {SCHEMES[scheme].login}") from None
    client.retries = 1  # of s3fs
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints tracebacks of what is tried again
    return client


def secrets() -> list[str]:
    """The secrets of the environment, and the parts of a connection string or a signed address that are some."""
    found = []
    for name in SECRETS:
        value = os.environ.get(name, "")
        for part in (value, *value.replace("?", "&").replace(";", "&").split("&")):
            key, _, secret = part.partition("=")
            if key in ("sig", "AccountKey", "SharedAccessSignature") and secret:
                found.append(secret)
        found.append(value)
    return sorted({value for value in found if len(value) >= 8}, key=len, reverse=True)


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a little later: the store fails for now, or was not reached."""
    return any(_is_temporary(item) for item in chain(error))


def reason(error: BaseException) -> str:
    """The first line of an error, without secrets."""
    lines = [line.strip() for item in chain(error) for line in str(item).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    for secret in secrets():
        text = text.replace(secret, "...")
    return without_secrets(text).rstrip(".")[:300]


def refusal(scheme: str, error: Exception) -> str:
    """A request that a store refused, with what to do."""
    words = " ".join(f"{type(item).__name__} {item}" for item in chain(error))
    marks = ("NoCredentials", "Unable to locate credentials", "Forbidden", "DefaultCredentialsError", "AuthenticationF")
    denied = isinstance(error, PermissionError) or _statuses(error) & {401, 403} or any(mark in words for mark in marks)
    if denied:
        return f"you may not read or write there ({reason(error)}); set {SCHEMES[scheme].login}"
    return reason(error)


def _is_temporary(error: BaseException) -> bool:
    if _status(error) in _TEMPORARY:
        return True
    if isinstance(error, OSError) and type(error) is OSError and error.errno in _BUSY:
        return True
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__name__ == "FSTimeoutError":
        return True
    from_library = type(error).__module__.split(".")[0] in _LIBRARIES
    return from_library and any(base.__name__ in _LOST for base in type(error).__mro__)


def _statuses(error: BaseException) -> set[int]:
    return {_status(item) for item in chain(error)} - {None}


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of any of the clients carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # of botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder in (error, response):
        for name in ("status_code", "status", "code"):
            value = getattr(holder, name, None)
            if str(value).isdecimal():
                return int(value)
    return None
