"""A transport that sends what is written in one turn of the event loop at once.

uvicorn writes the head of an answer and then its body, each of which uvloop hands to the system in a call of its own.
Both together take one call here, and one wake-up of their reader.

Anyone who takes nothing of what waits for them is dropped: to close would wait for them, too, and keep it in memory.
What waits for all of them together is limited: beyond that, who has waited longest is dropped, of the ledger for which
most waits.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from contextlib import suppress
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# What waits to be taken of all answers of a process, apart from a little for each connection.
MAX_UNREAD_BYTES: Final = 64 * 1024 * 1024
# Long enough for a slow line whose system tells of room only once a third of what it buffers is taken.
STALLED_S: Final = 60.0


class Unread:
    """The connections of a process whose clients do not take what waits for them, the longest first."""

    def __init__(self) -> None:
        """Begin with none."""
        self._connections: dict[Gathering, None] = {}

    def add(self, connection: Gathering) -> None:
        """Note that a client does not keep up, and drop connections until what waits is within its limit."""
        self._connections[connection] = None
        while True:
            by_owner: Counter[object] = Counter()
            for one in self._connections:
                by_owner[one.owner] += one.get_write_buffer_size()
            if by_owner.total() <= MAX_UNREAD_BYTES:
                return
            ((most, _),) = by_owner.most_common(1)
            next(one for one in self._connections if one.owner == most).abort()

    def remove(self, connection: Gathering) -> None:
        """Note that a client has taken what waited, or is gone."""
        self._connections.pop(connection, None)


UNREAD: Final = Unread()


class Gathering(asyncio.Transport):
    """What uvicorn uses of a transport; all but writing is the other transport's.

    Attributes:
        owner: whose answers are sent: a ledger, or an address as long as no key was presented.

    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Send through another transport."""
        super().__init__()
        peer = transport.get_extra_info("peername")
        self.owner: object = peer[0] if peer else None
        self._transport = transport
        self._loop = loop
        self._written: list[bytes | bytearray | memoryview[Any]] = []
        self._watching: asyncio.TimerHandle | None = None

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send it before the loop waits for anything."""
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        """Send all of it before the loop waits for anything."""
        for data in list_of_data:
            self.write(data)

    def _send(self) -> None:
        written, self._written = self._written, []
        if written and not self._transport.is_closing():
            self._transport.write(b"".join(written))

    def close(self) -> None:
        """Send what was written, then close."""
        self._send()
        self._transport.close()
        if self.get_write_buffer_size():
            self.watch()

    def abort(self) -> None:
        """Close at once, whatever was written."""
        UNREAD.remove(self)
        self._written.clear()
        self._transport.abort()

    def watch(self) -> None:
        """Drop the connection unless something is taken of what waits, again and again, until `unwatch`."""
        if self._watching is None:
            self._watching = self._loop.call_later(STALLED_S, self._look, self.get_write_buffer_size())
        UNREAD.add(self)

    def unwatch(self) -> None:
        """Leave the connection to itself."""
        UNREAD.remove(self)
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def _look(self, before: int) -> None:
        self._watching = None
        waiting = self.get_write_buffer_size()
        if waiting >= before > 0:
            self.abort()
        elif waiting:
            self.watch()

    def is_closing(self) -> bool:
        """Tell whether it is closed, or being closed."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the connection."""
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait for their reader."""
        return self._transport.get_write_buffer_size() + sum(map(len, self._written))

    def outstanding(self) -> int:
        """Return how many bytes the other side has not taken yet, those that the system keeps for it included.

        The system says that it has room only now and then: by its buffer alone, a slow reader looks like none.
        """
        kept = array("i", [0])
        with suppress(OSError, AttributeError):
            ioctl(self._transport.get_extra_info("socket").fileno(), TIOCOUTQ, kept)
        return self.get_write_buffer_size() + kept[0]

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Say from how many waiting bytes on the protocol is to pause, and down to how many."""
        self._transport.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        """Take nothing more in."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take in again what comes."""
        self._transport.resume_reading()

    def is_reading(self) -> bool:
        """Tell whether what comes is taken in."""
        return self._transport.is_reading()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who is told what comes."""
        return self._transport.get_protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Tell somebody else what comes."""
        self._transport.set_protocol(protocol)

    def can_write_eof(self) -> bool:
        """Tell whether the end can be sent while the other side still sends."""
        return False
