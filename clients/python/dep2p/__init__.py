"""Python client of dep2pd.

```python
async with dep2p.connect() as node:
    async with await node.open_stream(peer_id, ["/my-app/1.0.0"]) as stream:
        await stream.write(b"Hello via Relay!")
        await stream.close_write()
        print(await stream.read_all())
```
"""

from dep2p.client import Node, Policy, connect
from dep2p.errors import (
    AlreadyExistsError,
    DaemonError,
    DaemonNotReachableError,
    DaemonStoppingError,
    DeadlineError,
    Dep2pError,
    InvalidArgumentError,
    LimitError,
    NoReservationError,
    NotFoundError,
    PeerFailedError,
    PermissionDeniedError,
    PreconditionError,
    ProtocolNotSupportedError,
    RefusedError,
    StreamResetError,
    UnreachableError,
    UnsupportedError,
)
from dep2p.listener import Listener, Offer
from dep2p.socket_path import default_socket_path
from dep2p.stream import Stream

__all__ = [
    "AlreadyExistsError",
    "DaemonError",
    "DaemonNotReachableError",
    "DaemonStoppingError",
    "DeadlineError",
    "Dep2pError",
    "InvalidArgumentError",
    "LimitError",
    "Listener",
    "NoReservationError",
    "Node",
    "NotFoundError",
    "Offer",
    "PeerFailedError",
    "PermissionDeniedError",
    "Policy",
    "PreconditionError",
    "ProtocolNotSupportedError",
    "RefusedError",
    "Stream",
    "StreamResetError",
    "UnreachableError",
    "UnsupportedError",
    "connect",
    "default_socket_path",
]
