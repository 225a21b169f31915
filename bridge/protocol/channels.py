"""How a Kubernetes WebSocket carries several streams of bytes: one letter of each message names its channel. Without I/O.

    port-forward   v4.channel.k8s.io  channel 0 data, 1 error; the first message on each is the port, 2 bytes, little-endian
    exec           v5 (else v4)       channel 0 stdin, 1 stdout, 2 stderr, 3 a Status object as JSON

Limits: neither knows a half-close of ours (v5's close signal is for exec's stdin alone, and is not used).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

PORT_FORWARD = "v4.channel.k8s.io"
EXEC = ("v5.channel.k8s.io", "v4.channel.k8s.io")


@dataclass(frozen=True, slots=True)
class Part:
    """What came: data for the caller, words about an error, bytes to send back (`answer`), or the far side's end.

    `body` is valid until the next call of `feed`.
    """

    kind: Literal["data", "error", "answer", "end"]
    body: memoryview = field(default_factory=lambda: memoryview(b""))


class Wire(Protocol):
    """One stream of bytes to and from a pod, as what goes into a WebSocket's messages."""

    @property
    def opening(self) -> bytes:
        """The first message, if any."""
        ...

    @property
    def ending(self) -> bytes:
        """The message that says that nothing more follows, if there is one."""
        ...

    def head(self, size: int) -> bytes:
        """What precedes `size` bytes of data in a message of their own."""
        ...

    def feed(self, body: memoryview, start: bool) -> Iterator[Part]:
        """A piece of a message, its first one where `start`. Raises RemoteProtocolError."""
        ...


class Channels:
    """`channel_out` carries what the far side sends, `errors` its words; `skip` bytes come first on each. We send on channel 0."""

    opening = ending = b""

    def __init__(self, channel_out: int, errors: frozenset[int], skip: int = 0) -> None:
        self._channel_out, self._errors, self._skip = channel_out, errors, skip
        self._skipped: dict[int, int] = {}
        self._channel = -1  # of the message under way

    def head(self, size: int) -> bytes:
        return b"\0"

    def feed(self, body: memoryview, start: bool) -> Iterator[Part]:
        if start:
            self._channel, body = body[0], body[1:]
        missing = self._skip - self._skipped.get(self._channel, 0)
        if missing > 0:
            taken = min(missing, len(body))
            self._skipped[self._channel] = self._skipped.get(self._channel, 0) + taken
            body = body[taken:]
        if not body:
            return
        if self._channel == self._channel_out:
            yield Part("data", body)
        elif self._channel in self._errors:
            yield Part("error", body)
