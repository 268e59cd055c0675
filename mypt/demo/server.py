"""Serve the page: on one address, without analytics, and with a browser that may fetch nothing from elsewhere."""

from __future__ import annotations

import asyncio
import ipaddress
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
WAITING = 32  # visitors in the queue; the next one is told to come back


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


def make_server(page: gr.Blocks) -> uvicorn.Server:
    """A server of the page; `run(sockets=[...])` serves until a signal, or until `should_exit` is set."""
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from mypt.demo.markup import CSS

    page.queue(max_size=WAITING)
    system = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # fonts that are there
    theme = gr.themes.Default(font=system[0], font_mono=system[1])
    app = gr.mount_gradio_app(
        FastAPI(), page, "/", theme=theme, css=CSS, footer_links=[], run_history=False, ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False,
    )  # fmt: skip
    options = {"log_level": "warning", "timeout_graceful_shutdown": 1, "ws": "none"}
    server = uvicorn.Server(uvicorn.Config(_with_policy(app), **options))
    logging.getLogger("uvicorn.error").addFilter(_is_an_error)
    return server


def _is_an_error(record: logging.LogRecord) -> bool:
    """Not one that a page still listens when the server ends."""
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "graceful shutdown exceeded" not in record.getMessage()


def _with_policy(app: Callable) -> Callable:
    """The same ASGI application, each response with POLICY."""

    async def serve(scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await app(scope, receive, send_with_policy if scope["type"] == "http" else send)

    return serve
