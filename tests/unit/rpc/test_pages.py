"""Pages: all items once, in order, whatever comes and goes between."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import InvalidArgumentError
from dep2p_daemon.rpc.pages import DEFAULT_SIZE, MAX_SIZE, page

ITEMS = st.sets(st.text(min_size=1, max_size=8), max_size=60)


def walk(items: set[str], size: int) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        some, token = page(items, key=str, size=size, token=token)
        found += some
        if not token:
            return found
        assert len(some) == size


@given(ITEMS, st.integers(1, 20))
def test_all_items_come_once_and_in_order(items: set[str], size: int) -> None:
    assert walk(items, size) == sorted(items)


@given(ITEMS, ITEMS, ITEMS, st.integers(1, 5))
def test_what_stays_is_neither_skipped_nor_told_twice(
    items: set[str], gone: set[str], new: set[str], size: int
) -> None:
    first, token = page(items, key=str, size=size, token="")
    rest: list[str] = []
    while token:
        some, token = page((items - gone) | new, key=str, size=size, token=token)
        rest += some
    found = first + rest
    assert len(set(found)) == len(found)
    if len(items) > size:
        assert (items - gone) <= set(found)


@pytest.mark.parametrize(
    ("asked", "given_"), [(0, DEFAULT_SIZE), (7, 7), (MAX_SIZE + 1, MAX_SIZE), (10**9, MAX_SIZE)]
)
def test_sizes_are_bounded(asked: int, given_: int) -> None:
    some, token = page(map(str, range(5000)), key=str, size=asked, token="")
    assert len(some) == given_
    assert token


@pytest.mark.parametrize(("size", "token"), [(-1, ""), (1, "~~"), (1, "a"), (1, "_w==")])
def test_nonsense_is_refused(size: int, token: str) -> None:
    with pytest.raises(InvalidArgumentError):
        page(["a"], key=str, size=size, token=token)


@given(st.text(max_size=40))
def test_no_token_breaks_it(token: str) -> None:
    with contextlib.suppress(InvalidArgumentError):
        some, _ = page(["a", "b"], key=str, size=1, token=token)
        assert some in ([], ["a"], ["b"])
