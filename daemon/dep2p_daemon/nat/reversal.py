"""Connection reversal: who was dialled through a relay dials back, before and beside the punching.

https://github.com/libp2p/specs/blob/master/relay/DCUtR.md#the-protocol
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from dep2p_daemon.errors import Dep2pError
from dep2p_daemon.nat.trail import Outcome, Step, StepKind
from dep2p_daemon.swarm.dialing import DialPolicy

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.nat.attempt import Attempt
    from dep2p_daemon.swarm.swarm import Swarm


def dial_advertised(swarm: Swarm, attempt: Attempt, *, timeout: float) -> asyncio.Task[None] | None:
    """Start a plain dial of what the peer advertises; None when there is nothing to dial.

    `timeout` is in seconds. The task ends with the attempt.
    """
    known = swarm.peerstore.addresses(attempt.peer)
    # Judged apart: where the peer was yesterday must not use up the room of where it is now.
    judged = attempt.candidates.anew().judge(known)
    addresses = [one.address for one in judged if one.rejection is None]
    if not addresses or attempt.direct.done() or attempt.ended.is_set():
        return None
    return attempt.spawn(_dial(swarm, attempt, addresses, timeout))


async def _dial(
    swarm: Swarm, attempt: Attempt, addresses: Sequence[Multiaddr], timeout: float
) -> None:
    step = Step(
        kind=StepKind.DIRECT_DIAL,
        number=0,
        role=None,
        addresses=tuple(addresses),
        started_at=time.time(),
    )
    attempt.record_step(step)
    began = time.monotonic()
    outcome, detail = Outcome.ABANDONED, ""
    try:
        attempt.found(
            await swarm.dial(
                attempt.peer,
                addresses,
                policy=DialPolicy.DIRECT,
                timeout=timeout,
            )
        )
        outcome = Outcome.DIRECT
    except Dep2pError as error:
        outcome, detail = Outcome.FAILED, error.message
    finally:
        if attempt.trail.running:
            duration = time.monotonic() - began
            attempt.record_step(
                dataclasses.replace(step, duration=duration, outcome=outcome, detail=detail)
            )
