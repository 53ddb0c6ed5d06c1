"""Network namespaces of Linux, and the programs `ip` and `nft` in them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

DIRECTORY = "/run/netns"
LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN_WITHOUT_HEADER = 0x1001


class NatlabError(Exception):
    """Anything the user can act on; its text is the whole message."""


def require() -> None:
    """Check that laboratories can be made here.

    Raises:
        NatlabError: not root, or a program is missing.
    """
    if os.geteuid() != 0:
        raise NatlabError("must run as root: it makes network namespaces")
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            raise NatlabError(f"`{tool}` not found; on Debian: apt-get install iproute2 nftables")


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Have the calling thread, and no other, in a namespace during the block."""
    try:
        new = os.open(f"{DIRECTORY}/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NatlabError(f"network namespace {namespace} is gone") from None
    try:
        old = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(new)
            try:
                yield
            finally:
                _enter(old)
        finally:
            os.close(old)
    finally:
        os.close(new)


def _enter(descriptor: int) -> None:
    if LIBC.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


def attempt(
    argv: Sequence[str], *, stdin: str | None = None, namespace: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; what it says on both outputs is in `stdout`."""
    with inside(namespace) if namespace else contextlib.nullcontext():
        return subprocess.run(
            argv,
            input=stdin,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )


def run(argv: Sequence[str], *, stdin: str | None = None, namespace: str | None = None) -> None:
    """Run a command that must succeed.

    Raises:
        NatlabError: it did not, with what it said.
    """
    done = attempt(argv, stdin=stdin, namespace=namespace)
    if done.returncode:
        where = f" in {namespace}" if namespace else ""
        raise NatlabError(f"`{' '.join(argv)}`{where} failed: {done.stdout.strip()}")


def ip_batch(namespace: str, lines: Sequence[str]) -> None:
    """Run many `ip` commands at once."""
    if lines:
        run(["ip", "-n", namespace, "-batch", "-"], stdin="\n".join(lines) + "\n")


def write_sysctls(namespace: str, values: Mapping[str, int]) -> None:
    """Set kernel parameters; those whose name begins with "?" may be absent."""
    with inside(namespace):
        for key, value in values.items():
            path = "/proc/sys/" + key.lstrip("?").replace(".", "/")
            try:
                with open(path, "w") as file:
                    file.write(str(value))
            except OSError as error:
                if key.startswith("?") and error.errno == errno.ENOENT:
                    continue
                raise NatlabError(
                    f"cannot set {key} in {namespace}: {error.strerror} "
                    "(is /proc/sys read-only here?)"
                ) from None


def open_tun(namespace: str, device: str) -> int:
    """Make a TUN device in a namespace; it lives as long as the returned descriptor."""
    with inside(namespace):
        try:
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise NatlabError(
                f"cannot open /dev/net/tun: {error.strerror} (the kernel needs CONFIG_TUN; in a "
                "container, pass the device in)"
            ) from None
        request = struct.pack("16sH22x", device.encode(), _IFF_TUN_WITHOUT_HEADER)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
    return descriptor


def names(prefix: str) -> list[str]:
    """Namespaces whose name begins with `prefix`."""
    with contextlib.suppress(FileNotFoundError):
        return [name for name in os.listdir(DIRECTORY) if name.startswith(prefix)]
    return []


def processes_in(namespaces: Iterable[str]) -> list[int]:
    """Pids of the processes, but not this one, in any of these namespaces."""
    wanted = set()
    for namespace in namespaces:
        with contextlib.suppress(OSError):
            status = os.stat(f"{DIRECTORY}/{namespace}")
            wanted.add((status.st_dev, status.st_ino))
    found = []
    for entry in os.listdir("/proc") if wanted else ():
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                status = os.stat(f"/proc/{entry}/ns/net")
                if (status.st_dev, status.st_ino) in wanted:
                    found.append(int(entry))
    return found
