"""Errors as the OpenAI protocol tells them: an object in the body of a response, or in an event of a stream."""

from typing import Any

from openai.types import ErrorObject
from starlette.responses import JSONResponse

from moekit.core.errors import MoekitError, UsageError
from moekit.serve.protocol import ConversationRefused, PromptTooLong


class RequestError(MoekitError):
    """A request that is not answered.

    Attributes:
        status: of the HTTP response.
        param: the key of the request that is at fault; None where no single key is.
        code: a word that programs can compare; None where the protocol has none.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def error_object(error: MoekitError) -> dict[str, Any]:
    """Make `{"error": {"message": …, "type": …, "param": …, "code": …}}`."""
    kind = "invalid_request_error" if _status(error) < 500 else "server_error"
    param, code = None, None
    if isinstance(error, RequestError):
        param, code = error.param, error.code
    elif isinstance(error, PromptTooLong):
        param, code = "messages", "context_length_exceeded"
    elif isinstance(error, ConversationRefused):
        param = "messages"
    return {"error": ErrorObject(message=str(error), type=kind, param=param, code=code).model_dump(exclude_unset=True)}


def error_response(error: MoekitError) -> JSONResponse:
    """Make the response that tells the error, with its status.

    A failure here comes after every retry that was worth its price, so clients are told not to try again by
    themselves: x-should-retry is the header that OpenAI's own client obeys.
    """
    return JSONResponse(error_object(error), status_code=_status(error), headers={"x-should-retry": "false"})


def _status(error: MoekitError) -> int:
    if isinstance(error, RequestError):
        return error.status
    return 400 if isinstance(error, UsageError) else 500
