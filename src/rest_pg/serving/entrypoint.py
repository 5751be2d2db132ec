"""``python -m rest_pg.serving.entrypoint``: serve a registered model by MLflow's scoring server, guarded.

MLflow's own command starts the same server. It reads a body of any size, answers whatever Host header, and fails on a
request without a content type.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import mlflow
import uvicorn
from fastapi import FastAPI
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.pyfunc import PyFuncModel, scoring_server
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rest_pg.config import ServingLimits

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
ENVELOPE = 65_536
"""Bytes of a body beside its requests: names of fields, parameters, white space."""


def guard(app: FastAPI, limits: ServingLimits, hosts: Sequence[str] = ()) -> FastAPI:
    """Have a scoring server refuse what it shouldn't read.

    A foreign Host header is answered with 400: a page in a browser can have its own name point to this machine, and
    would read answers. A body that is larger than its requests may be is answered with 413 as soon as that shows, and
    a body without a content type with 400.

    Args:
        app: MLflow's.
        limits: of one call.
        hosts: names beside this machine's own, such as a proxy's; ``*.example.org`` stands for all below it.
    """
    app.add_middleware(_BodyGuard, most=most_bytes(limits))
    app.add_middleware(
        TrustedHostMiddleware, allowed_hosts=[*LOCAL_HOSTS, *hosts], www_redirect=False
    )
    return app


def most_bytes(limits: ServingLimits) -> int:
    """Return the bytes of the largest body whose requests are all within their limits."""
    return limits.max_requests * limits.max_characters + ENVELOPE


class _BodyGuard:
    """Reads a body up to its limit before anything else sees it."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._most:
            await self._refuse(f"{announced} bytes", scope, receive, send)
            return
        if not headers.get("content-type", "").strip():
            text = f"the Content-Type header is missing: send {scoring_server.CONTENT_TYPE_JSON}"
            await PlainTextResponse(text, status_code=400)(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most:
                await self._refuse(f"more than {self._most} bytes", scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)

    async def _refuse(self, found: str, scope: Scope, receive: Receive, send: Send) -> None:
        text = (
            f"the body holds {found}, and {self._most} are the most by ship.limits: send fewer requests or "
            "documents at once"
        )
        # what is still on its way is not read
        response = PlainTextResponse(text, status_code=413, headers={"Connection": "close"})
        await response(scope, receive, send)


def create_app(model: PyFuncModel, hosts: Sequence[str] = ()) -> FastAPI:
    """Return the guarded server of a loaded model."""
    return guard(scoring_server.init(model), model.unwrap_python_model().limits, hosts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(prog="python -m rest_pg.serving.entrypoint")
    parser.add_argument(
        "--model-uri", required=True, help="such as models:/rest-pg-writer@champion"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=5001)
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one call")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        help="another Host header to answer, repeatable",
    )
    given = parser.parse_args(arguments)
    os.environ[MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.name] = str(given.timeout)
    app = create_app(mlflow.pyfunc.load_model(given.model_uri), given.allowed_host)
    uvicorn.run(app, host=given.host, port=given.port)


if __name__ == "__main__":
    main()
