"""Connection ids and stateless reset tokens."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.quic.connection_ids import ConnectionIds, derive_reset_key
from dep2p_daemon.quic.context import QuicContext
from dep2p_daemon.quic.settings import QuicSettings

KEY = bytes(range(32))


def test_ids_carry_their_worker_and_differ() -> None:
    ids = ConnectionIds(KEY, worker_id=9)
    made = {ids.new() for _ in range(100)}
    assert len(made) == 100
    assert all(len(cid) == 8 and cid[0] == 9 and ids.is_ours(cid) for cid in made)
    assert not any(ConnectionIds(KEY, worker_id=8).is_ours(cid) for cid in made)
    assert not ids.is_ours(b"\x09" * 7)
    assert not ids.is_ours(b"")
    for worker in (-1, 256):
        with pytest.raises(ValueError, match="one byte"):
            ConnectionIds(KEY, worker_id=worker)


def test_tokens_depend_on_key_and_id_only() -> None:
    cid = os.urandom(8)
    token = ConnectionIds(KEY).reset_token(cid)
    assert len(token) == 16
    assert ConnectionIds(KEY, worker_id=3).reset_token(cid) == token
    assert ConnectionIds(KEY[::-1]).reset_token(cid) != token
    assert ConnectionIds(KEY).reset_token(cid[::-1]) != token


def test_the_key_comes_from_the_node_key_unless_it_is_given() -> None:
    one, other = PrivateKey.from_seed(bytes(32)), PrivateKey.from_seed(KEY)
    cid = bytes(8)
    first = QuicContext.create(one, QuicSettings()).connection_ids.reset_token(cid)
    assert QuicContext.create(one, QuicSettings()).connection_ids.reset_token(cid) == first
    assert QuicContext.create(other, QuicSettings()).connection_ids.reset_token(cid) != first
    given_key = QuicSettings(stateless_reset_key=KEY)
    assert QuicContext.create(one, given_key).connection_ids.reset_token(cid) == ConnectionIds(
        KEY
    ).reset_token(cid)
    assert derive_reset_key(one.to_protobuf()) != one.to_protobuf()[-32:]
    assert "stateless_reset_key" not in repr(given_key)


@given(st.binary(max_size=1500))
def test_resets_are_shorter_than_their_trigger(trigger: bytes) -> None:
    ids = ConnectionIds(KEY)
    reset = ids.stateless_reset(trigger)
    if len(trigger) <= 40 or trigger[1] != 0:
        assert reset is None
        return
    assert reset is not None
    assert 21 <= len(reset) < len(trigger)
    assert reset[0] & 0xC0 == 0x40
    assert reset[-16:] == ids.reset_token(trigger[1:9])


def test_resets_look_random() -> None:
    ids = ConnectionIds(KEY)
    trigger = b"\x40" + bytes(100)
    resets = [ids.stateless_reset(trigger) for _ in range(50)]
    assert len({reset[:5] for reset in resets if reset}) == 50
    assert len({reset[0] for reset in resets if reset}) > 10
