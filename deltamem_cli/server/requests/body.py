"""The body of a request, read to a bound."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

from starlette.requests import ClientDisconnect, Request

from deltamem_cli.server.problems import Problem, invalid
from deltamem_cli.text import whole

LARGEST_BODY = 10_000_000  # bytes
_BODY_SECONDS = 30.0
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a character beyond U+FFFF; alone it can't be put into bytes


async def read_json(request: Request) -> dict[str, Any]:
    """The body as an object. Raises Problem."""
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > LARGEST_BODY:
        raise _too_large()
    try:
        data = await asyncio.wait_for(_read(request), _BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Problem(408, f"The body did not come within {_BODY_SECONDS:.0f} seconds: send it at once.") from None
    except ClientDisconnect:
        raise Problem(499, "The client left.") from None
    try:
        body = _parsed(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise invalid("The body is not UTF-8: send JSON in UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise invalid(f"The body is not JSON ({str(error)[:100]}): send a JSON object.") from None
    if not isinstance(body, dict):
        raise invalid("The body must be a JSON object.")
    return body


def _parsed(text: str) -> Any:
    """What `text` says, all of which can be said again as JSON. Raises ValueError and RecursionError."""
    body = json.loads(text, parse_constant=_finite, parse_float=_finite)
    if _HALF.search(text):
        body = json.loads(whole(json.dumps(body, ensure_ascii=False)))
    return body


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a number")
    return number


async def _read(request: Request) -> bytearray:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST_BODY:
            raise _too_large()
    return data


def _too_large() -> Problem:
    return Problem(413, f"The body is larger than {LARGEST_BODY // 1_000_000} MB: send less at once.")
