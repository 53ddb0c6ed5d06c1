"""Pages of a list: https://google.aip.dev/158

A token names the last item of its page, so that items which come and go between two calls make
no other item appear twice or be left out.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dep2p_daemon.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 1000

Item = TypeVar("Item")


def page(
    items: Iterable[Item], *, key: Callable[[Item], str], size: int, token: str
) -> tuple[list[Item], str]:
    """Return the items of one page, in the order of their unique keys, and the next token.

    Raises:
        InvalidArgumentError: a negative size, or a token that no page gave.
    """
    if size < 0:
        raise InvalidArgumentError(
            f"a page of {size} items", reason="PAGE_SIZE_INVALID", remedy="use 0 to 1000"
        )
    size = min(size or DEFAULT_SIZE, MAX_SIZE)
    after = _decode(token)
    rest: list[Any] = sorted((item for item in items if key(item) > after), key=key)
    next_token = _encode(key(rest[size - 1])) if len(rest) > size else ""
    return rest[:size], next_token


def _encode(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _decode(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            "the page token is none of ours",
            reason="PAGE_TOKEN_INVALID",
            remedy="send next_page_token as it came, or none for the first page",
        ) from error
