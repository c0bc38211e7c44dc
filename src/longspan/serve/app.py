"""The application: routes, their documentation, and a place for more routes."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of functions, whose types are imported
# where they are needed.

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel

from longspan import __version__
from longspan.serve import openai_api, tei_api
from longspan.serve.docs_page import docs_page
from longspan.serve.endpoint import OPEN_PATHS, Door, Handler, answer, refused
from longspan.serve.refusal import Refusal
from longspan.serve.schema import (
    EmbedRequest,
    Info,
    OpenAIError,
    OpenAIModels,
    OpenAIRequest,
    OpenAIResponse,
    TEIError,
    Token,
    TokenizeRequest,
)
from longspan.serve.service import Service
from longspan.serve.telemetry import missing_extra

Mount = Callable[[Any, Service], None]
"""Adds routes to a FastAPI application: `def mount(app, service): app.add_api_route(...)`."""

_ERRORS = {
    400: "The body is not JSON, or not of this form",
    401: "The API key is missing or wrong",
    404: "There is no such model",
    413: "Too many bytes or texts; the message names the limit",
    422: "Well-formed, but not for this model: a text that is empty or too long, an unknown task, too many dimensions",
    429: "The server is busy; `Retry-After` says when to try again",
    503: "The server is shutting down",
    504: "The answer would have taken too long",
}


def create_app(
    service: Service,
    *,
    api_key: str | None = None,
    mounts: Iterable[Mount] = (),
    open_paths: Iterable[str] = (),
) -> Any:
    """A FastAPI application that serves the models of `service`, and starts and stops them.

    Args:
        api_key: what clients must send as `Authorization: Bearer KEY`; None: nothing.
        mounts: what adds further routes, such as a page to search in. They have the same door: key, log and metrics.
        open_paths: paths of `mounts` that need no key, such as the page itself.

    Raises:
        LongspanError: the extra `serve` is not installed.
    """
    try:
        from fastapi import FastAPI
    except ImportError:
        raise missing_extra("fastapi") from None

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="longspan",
        version=__version__,
        summary="Text embeddings over HTTP, in the forms of OpenAI and of text-embeddings-inference.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_posts(app, service)
    _add_gets(app, service)
    for mount in mounts:
        mount(app, service)
    _add_errors(app, service)
    needing_no_key = frozenset({*OPEN_PATHS, *open_paths})
    if api_key is not None:
        _tell_of_key(app, needing_no_key)
    paths = frozenset(getattr(route, "path", "") for route in app.routes)
    app.add_middleware(Door, service=service, routes=paths, api_key=api_key, open_paths=needing_no_key)
    return app


def add_post(
    app: Any,
    service: Service,
    path: str,
    summary: str,
    handler: Handler,
    *,
    body: type[BaseModel],
    answer_with: Any,
    error: type[BaseModel] = TEIError,
    headers: dict[str, Any] | None = None,
) -> None:
    """Add a route that answers JSON bodies, documented and within the limits of all requests.

    Args:
        body, answer_with, error, headers: what requests and answers look like, for the documentation.
    """
    from fastapi import Request

    async def endpoint(request: Request) -> Any:
        return await answer(service, request, handler)

    app.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        name=handler.__name__,  # pyright: ignore[reportAttributeAccessIssue]
        summary=summary,
        responses={
            200: {"model": answer_with, "headers": headers or {}},
            **{status: {"model": error, "description": text} for status, text in _ERRORS.items()},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": body.model_json_schema()}},
            }
        },
    )


_HEADERS = {
    "x-longspan-tokens": {"schema": {"type": "integer"}, "description": "Tokens that the model read"},
    "x-longspan-truncated": {"schema": {"type": "integer"}, "description": "Texts that were cut"},
}


def _add_posts(app: Any, service: Service) -> None:
    add_post(
        app,
        service,
        "/v1/embeddings",
        "Vectors, as OpenAI gives them",
        openai_api.embeddings,
        body=OpenAIRequest,
        answer_with=OpenAIResponse,
        error=OpenAIError,
        headers=_HEADERS,
    )
    add_post(
        app,
        service,
        "/embed",
        "Vectors, as text-embeddings-inference gives them",
        tei_api.embed,
        body=EmbedRequest,
        answer_with=list[list[float]],
        headers=_HEADERS,
    )
    add_post(
        app,
        service,
        "/tokenize",
        "The tokens of texts",
        tei_api.tokenize,
        body=TokenizeRequest,
        answer_with=list[list[Token]],
    )


def _add_gets(app: Any, service: Service) -> None:
    from fastapi.responses import HTMLResponse, PlainTextResponse, Response

    @app.get("/v1/models", response_model=OpenAIModels, summary="The models, and each of their tasks as a model")
    async def models() -> Any:
        return (await openai_api.models(service, b"")).content

    @app.get("/info", response_model=Info, responses={404: {"model": TEIError}}, summary="A model and all limits")
    async def info(model: str | None = None) -> Any:
        return tei_api.info(service, model)

    not_ready = {"description": "Not ready, or shutting down", "content": {"text/plain": {}}}

    @app.get("/health", response_class=PlainTextResponse, responses={503: not_ready}, summary="Whether all is well")
    async def health() -> Response:
        return PlainTextResponse("ok" if service.healthy else "not ready", 200 if service.healthy else 503)

    @app.get("/metrics", response_class=PlainTextResponse, summary="Metrics for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(app.openapi(), list(service.models)))


def _add_errors(app: Any, service: Service) -> None:
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    async def of_refusal(request: Request, error: Any) -> Any:
        return refused(service, error, request.scope["path"])

    async def of_http(request: Request, error: Any) -> Any:
        response = refused(service, Refusal(error.status_code, str(error.detail)), request.scope["path"])
        response.headers.update(error.headers or {})
        return response

    async def of_parameters(request: Request, error: Any) -> Any:
        return refused(service, Refusal(400, "a parameter of the address is wrong"), request.scope["path"])

    app.add_exception_handler(Refusal, of_refusal)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_parameters)


def _tell_of_key(app: Any, open_paths: frozenset[str]) -> None:
    without = app.openapi

    def openapi() -> dict[str, Any]:
        schema = without()
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            if path not in open_paths:
                for operation in operations.values():
                    operation["security"] = [{"key": []}]
        return schema

    app.openapi = openapi
