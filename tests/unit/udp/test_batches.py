"""What one UDP_SEGMENT send can carry."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.udp.batches import MAX_BATCH_BYTES, MAX_BATCH_SEGMENTS, split_batches

SIZES = st.sampled_from([1, 30, 1200, 1400, 9000, 65_000])
BULK = st.builds(
    lambda size, count, tail: [size] * count + tail,
    SIZES,
    st.integers(1, 200),
    st.lists(SIZES, max_size=1),
)


@given(st.lists(SIZES, max_size=200) | BULK)
def test_batches_are_sendable_and_complete(sizes: list[int]) -> None:
    datagrams = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    batches = split_batches(datagrams)
    assert [datagram for batch in batches for datagram in batch] == datagrams
    for batch in batches:
        lengths = [len(datagram) for datagram in batch]
        assert 1 <= len(batch) <= MAX_BATCH_SEGMENTS
        assert len(batch) == 1 or sum(lengths) <= MAX_BATCH_BYTES
        assert all(length == lengths[0] for length in lengths[:-1])
        assert lengths[-1] <= lengths[0]


def test_batches_are_as_large_as_they_can_be() -> None:
    full = [bytes(1400)] * 92
    assert [len(batch) for batch in split_batches(full)] == [46, 46]
    assert [len(batch) for batch in split_batches([bytes(10)] * 100)] == [64, 36]
    assert len(split_batches([bytes(1400), bytes(1400), bytes(7)])) == 1
    assert len(split_batches([bytes(7), bytes(1400), bytes(1400)])) == 2
