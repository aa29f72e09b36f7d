"""A proxy before a broker that swallows, holds or cuts what a test names, and counts it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Final, Self

from tests.infra.delivery.kafka.broker import Broker

# The numbers of requests in Kafka's protocol.
PRODUCE: Final = 0
ADD_PARTITIONS_TO_TXN: Final = 24
END_TXN: Final = 26


class SwallowingProxy:
    """Passes requests on, but those that `swallow` says yes to: they never arrive, and nobody is told.

    Attributes:
        swallow: asked for each request, with its number in the protocol and its bytes.
        cut_after: asked likewise; where it says so, the request arrives, and its answer never comes back.
        met: how many requests were swallowed or cut off from their answer.
        cutting: every connection ends, and new ones at once, as if the network were gone.

    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.swallow: Callable[[int, bytes], bool] = lambda _number, _request: False
        self.cut_after: Callable[[int, bytes], bool] = lambda _number, _request: False
        self.met = 0
        self.cutting = False
        self._open: set[socket.socket] = set()
        host, _, port = broker.proxied.rpartition(":")
        self._listening = socket.create_server((host, int(port)))
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Only a shutdown wakes who waits in accept.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()

    def cut(self) -> None:
        """End every connection there is now."""
        for connection in list(self._open):
            _end(connection)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.cutting:
                client.close()
                continue
            host, _, port = self._broker.behind.rpartition(":")
            try:
                server = socket.create_connection((host, int(port)))
            except OSError:
                client.close()
                continue
            self._open |= {client, server}
            threading.Thread(target=self._requests, args=(client, server), daemon=True).start()
            threading.Thread(target=self._replies, args=(server, client), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while True:
                head = _exactly(client, 4)
                request = _exactly(client, struct.unpack(">i", head)[0])
                (number,) = struct.unpack(">h", request[:2])
                if self.swallow(number, request):
                    self.met += 1
                    continue
                if self.cut_after(number, request):
                    self.met += 1
                    client.shutdown(socket.SHUT_WR)
                    server.sendall(head + request)
                    continue
                server.sendall(head + request)
        except OSError:
            self._close(client, server)

    def _replies(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while reply := server.recv(65_536):
                client.sendall(reply)
        except OSError:
            pass
        self._close(client, server)

    def _close(self, *connections: socket.socket) -> None:
        for connection in connections:
            self._open.discard(connection)
            _end(connection)
            connection.close()


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            raise ConnectionResetError
        found += piece
    return bytes(found)


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
