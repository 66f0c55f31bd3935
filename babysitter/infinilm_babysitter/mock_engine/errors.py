"""The mock engine's closed set of errors, and their one way into HTTP."""

import enum
import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from infinilm_babysitter.mock_engine.wire import to_json

log = logging.getLogger(__name__)


class Fault(enum.Enum):
    """Every error this engine answers with: code, HTTP status, OpenAI's type."""

    INVALID_JSON = ("invalid_json", 400, "invalid_request_error")
    INVALID_VALUE = ("invalid_value", 400, "invalid_request_error")
    MISSING_FIELD = ("missing_required_parameter", 400, "invalid_request_error")
    CONTEXT_LENGTH = ("context_length_exceeded", 400, "invalid_request_error")
    MODEL_NOT_FOUND = ("model_not_found", 404, "invalid_request_error")
    PATH_NOT_FOUND = ("not_found", 404, "invalid_request_error")
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405, "invalid_request_error")
    BODY_TOO_LARGE = ("body_too_large", 413, "invalid_request_error")
    INTERNAL = ("internal", 500, "server_error")

    def __init__(self, code: str, status: int, type_: str) -> None:
        self.code = code
        self.status = status
        self.type = type_


class ApiError(Exception):
    """A request that cannot be answered; `param` names the field at fault."""

    def __init__(self, fault: Fault, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message
        self.param = param


def error_response(error: ApiError) -> web.Response:
    """The error in the nested shape that every OpenAI client reads."""
    body = {
        "error": {
            "message": error.message,
            "type": error.fault.type,
            "param": error.param,
            "code": error.fault.code,
        }
    }
    return web.Response(
        status=error.fault.status, body=to_json(body), content_type="application/json"
    )


def _from_http(request: web.Request, error: web.HTTPException) -> web.Response:
    """What aiohttp itself refuses (unknown path, wrong method, huge body), in the same shape."""
    where = f"{request.method} {request.path}"
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = error_response(
            ApiError(Fault.METHOD_NOT_ALLOWED, f"{where} is not supported; use {allowed}.")
        )
        answer.headers["Allow"] = allowed
        return answer
    if isinstance(error, web.HTTPNotFound):
        return error_response(
            ApiError(Fault.PATH_NOT_FOUND, f"{where} is not an endpoint of the mock engine.")
        )
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return error_response(ApiError(Fault.BODY_TOO_LARGE, f"{where}: {error.text}."))
    raise error


@web.middleware
async def errors_to_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every failure with OpenAI's error object; log those that are ours."""
    try:
        return await handler(request)
    except ApiError as error:
        return error_response(error)
    except web.HTTPException as error:
        return _from_http(request, error)
    except ConnectionResetError:
        raise  # the client left: nobody to answer, nothing of ours to report
    except Exception:  # the last line of defence: a bug must not take the connection down unseen
        log.exception("request failed path=%s", request.path)
        return error_response(ApiError(Fault.INTERNAL, "The mock engine failed; see its log."))
