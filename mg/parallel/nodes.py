"""What the launchers of several machines tell each other: that one of them has failed, or is done.

Machine 0 listens, the others connect to it. Messages are lines of JSON. A connection that ends without a last word
means that the launcher at the other end, or its machine, is gone.
"""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from mg.errors import UserError

_RETRY_SECONDS = 0.5
_CONNECT_SECONDS = 1.0
_LOST = 1
"""Exit code of a run one of whose machines is gone."""


@dataclass(frozen=True)
class Failure:
    """The failure of a process on some machine."""

    name: str
    """Such as "rank 3"."""
    code: int
    """Its exit code."""


@dataclass
class _Peer:
    """One connection, which never blocks."""

    connection: socket.socket
    received: bytes = b""
    node: int | None = None
    open: bool = True

    def lines(self) -> Iterator[dict]:
        """Yield the messages that have come; notes when the connection has ended."""
        try:
            while chunk := self.connection.recv(4096):
                self.received += chunk
            self.open = False
        except BlockingIOError:
            pass
        except OSError:
            self.open = False
        *whole, self.received = self.received.split(b"\n")
        for line in whole:
            with suppress(ValueError):  # somebody else who has found the port
                message = json.loads(line)
                if isinstance(message, dict):
                    yield message

    def send(self, message: dict) -> None:
        """Send a message, which is far shorter than the socket's buffer."""
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")


@dataclass(kw_only=True)
class Nodes:
    """The launchers of a run on several machines, as one of them sees them; call `look` again and again.

    node: number of this machine.
    count: number of machines.
    host, port: where machine 0 listens.
    seconds: how long to try to reach it.

    Raises:
        UserError: the port is taken (on machine 0).
    """

    node: int
    count: int
    host: str
    port: int
    seconds: float
    failure: Failure | None = None
    """The first failure that is known of."""
    _peers: list[_Peer] = field(default_factory=list)
    _done: set[int] = field(default_factory=set)
    _listener: socket.socket | None = None
    _next_try: float = 0.0
    _unreachable: bool = False
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Listen, on machine 0."""
        if self.node == 0 and self.count > 1:
            try:
                self._listener = socket.create_server((self.host, self.port), backlog=self.count)
            except OSError as error:
                raise UserError(
                    f"master_port: {self.host}:{self.port}, where the launchers meet: {error.strerror}; choose a "
                    "port that is free as well as the one after it"
                ) from error
            self._listener.setblocking(False)

    @property
    def waiting(self) -> bool:
        """Whether machine 0 has still to hear that others are done."""
        return self.node == 0 and self.failure is None and len(self._done) < self.count - 1

    @property
    def _unheard(self) -> bool:
        """Whether machine 0 knows of a failure and has still to hear from others at all."""
        heard = {peer.node for peer in self._peers if peer.node is not None}
        return self.node == 0 and self.failure is not None and len(heard) < self.count - 1

    def look(self) -> Failure | None:
        """Take what has come, pass failures on to the other machines; returns the first failure known of."""
        if self.node == 0:
            self._accept()
        elif not self._peers and self.failure is None:
            self._connect()
        for peer in [peer for peer in self._peers if peer.open]:
            for message in peer.lines():
                self._take(peer, message)
            if not peer.open and peer.node is not None and peer.node not in self._done:
                self.fail(Failure(f"the launcher of machine {peer.node}", _LOST))
        return self.failure

    def fail(self, failure: Failure) -> None:
        """Tell the others of a failure; only the first counts."""
        if self.failure is None:
            self.failure = failure
            for peer in self._peers:
                peer.send({"failed": failure.name, "code": failure.code})

    def close(self, seconds: float = 5.0) -> None:
        """Say that this machine is done, unless it said that it failed, and end the connections.

        A machine that has not yet reached the first one tries for some seconds, so as not to leave it waiting. After a
        failure the first one waits as long for those that it has not heard: a connection that it did not look at, or a
        word that it did not read, would take the news of the failure with it.
        """
        end = time.monotonic() + seconds
        while self._unheard and time.monotonic() < end:
            self.look()
            time.sleep(0.05)
        while self.node and not self._peers and not self._unreachable and time.monotonic() < end:
            self._connect()
            time.sleep(0.05)
        for peer in self._peers:
            if self.failure is None:
                peer.send({"done": self.node})
            peer.connection.close()
        if self._listener is not None:
            self._listener.close()

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            while self._listener is not None:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                peer = _Peer(connection)
                self._peers.append(peer)
                if self.failure is not None:  # it came too late to hear of it
                    peer.send({"failed": self.failure.name, "code": self.failure.code})

    def _connect(self) -> None:
        now = time.monotonic()
        if now < self._next_try:
            return
        self._next_try = now + _RETRY_SECONDS
        try:
            connection = socket.create_connection((self.host, self.port), _CONNECT_SECONDS)
        except OSError as error:
            if now - self._started > self.seconds and self.failure is None:
                self._unreachable = True
                self.fail(Failure(f"the way to machine 0 ({self.host}:{self.port}: {error})", _LOST))
            return
        connection.setblocking(False)
        peer = _Peer(connection, node=0)
        peer.send({"node": self.node})
        if self.failure is not None:
            peer.send({"failed": self.failure.name, "code": self.failure.code})
        self._peers.append(peer)

    def _take(self, peer: _Peer, message: dict) -> None:
        number = message.get("node")
        if self.node == 0 and isinstance(number, int) and 0 < number < self.count:
            peer.node = number
        if isinstance(message.get("failed"), str) and isinstance(message.get("code"), int):
            self._done.add(peer.node if peer.node is not None else -1)  # it has had its last word
            self.fail(Failure(message["failed"], message["code"]))
        if isinstance(message.get("done"), int) and peer.node == message["done"]:
            self._done.add(message["done"])
