"""Serve the page: on one address, without files and analytics, to a browser that may fetch nothing from elsewhere."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from mypt.errors import MyPTError

if TYPE_CHECKING:
    import gradio as gr
    import uvicorn

# The browser loads nothing from another host, whatever gradio's page or a model's text names.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
FILES = ("/gradio_api/file", "/gradio_api/upload", "/gradio_api/proxy", "/gradio_api/stream")  # the page has none
LARGEST = 2**20  # bytes of a request
WAITING = 32  # visitors in the queue; the next one is asked to come back


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: a free one. Raises MyPTError where the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen()
    except OSError as error:
        found.close()
        raise MyPTError(
            f"{host} port {port} cannot be used ({error.strerror or error}); name another --port, 0 for a free one, or "
            "another --host"
        ) from error
    return found


def address(listening: socket.socket) -> str:
    """The URL under which this machine's browser finds the page."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def is_local(listening: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def make_server(page: gr.Blocks, *, local: bool) -> uvicorn.Server:
    """A server of the page; `run(sockets=[...])` serves until a signal, or until `should_exit` is set.

    local: Answer only requests to a name of this machine, so that no page of another site reaches it by a name of its
    own (DNS rebinding).
    """
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from mypt.demo.markup import CSS

    page.queue(max_size=WAITING)
    page.has_launched = True  # launch() sets it; without it gradio copies any file that a request names to its cache
    system = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # fonts that are there
    theme = gr.themes.Default(font=system[0], font_mono=system[1])
    app = gr.mount_gradio_app(
        FastAPI(), page, "/", theme=theme, css=CSS, footer_links=[], run_history=False, ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False,
    )  # fmt: skip
    options = {"log_level": "warning", "timeout_graceful_shutdown": 1, "ws": "none"}
    server = uvicorn.Server(uvicorn.Config(_guarded(app, local), **options))
    logging.getLogger("uvicorn.error").addFilter(_is_an_error)
    return server


def _is_an_error(record: logging.LogRecord) -> bool:
    """Not one that a page still listens when the server ends."""
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "graceful shutdown exceeded" not in record.getMessage()


def _guarded(app: Callable, local: bool) -> Callable:
    """The same ASGI application, each response with POLICY; requests about files are refused.

    gradio reads a file, or fetches an address, for any argument that claims to be one.
    """
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse

    async def serve(scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", POLICY.encode())]
            await send(message)

        if scope["type"] != "http":
            return await app(scope, receive, send)
        if local and not _is_this_machine(dict(scope["headers"]).get(b"host", b"").decode("latin-1")):
            return await PlainTextResponse("this page is for its own machine", 403)(scope, receive, send_with_policy)
        if scope["path"].startswith(FILES):
            return await PlainTextResponse("the page has no files", 404)(scope, receive, send_with_policy)
        if scope["method"] == "POST":
            body = b""
            async for chunk in Request(scope, receive).stream():
                body += chunk
                if len(body) > LARGEST:
                    return await PlainTextResponse("too long", 413)(scope, receive, send_with_policy)
            if _names_a_file(body):
                return await PlainTextResponse("the page has no files", 403)(scope, receive, send_with_policy)
            receive = _repeated(body, receive)
        return await app(scope, receive, send_with_policy)

    return serve


def _is_this_machine(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    try:
        return name.lower() == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _names_a_file(body: bytes) -> bool:
    """Whether a part of a JSON body claims to be a file."""
    try:
        waiting = [json.loads(body)] if body else []
    except (ValueError, RecursionError):
        return True  # no request of the page
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("_type") == "gradio.FileData":
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def _repeated(body: bytes, receive: Callable) -> Callable:
    """An ASGI `receive` that gives a body that was read, then what follows."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def again():
        return first.pop() if first else await receive()

    return again
