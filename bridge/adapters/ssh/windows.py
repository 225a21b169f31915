"""How much the far side may send before it must wait: one SSH receive window per channel, bounded in their sum.

Theory of operation: a window is memory that we promise. A channel starts with 128 KiB and gets four times as much each time
it has used half of what it had (a far target is slow enough without a slow start), to 8 MiB, as long as an eighth of the limit
is left for others. Half of a large window would be news too late: 8 MiB renewed by the half carry 4 MiB and a bit per round
trip, renewed by the MiB nearly all. The more channels there are, the less a new one
starts with, and one that holds more than its share gives back as it is used: SSH cannot take a promise back, only not renew it.

Limits: every channel may have LEAST bytes, even past the limit, so the sum is at most limit + LEAST * channels.
"""

from __future__ import annotations

START = 128 << 10
LEAST = 4 << 10
MOST = 8 << 20
_GROWTH = 4
_STEP = 1 << 20
_KEPT = 8  # an eighth of the limit is for channels to come

BRIDGE_LIMIT = 256 << 20
AGENT_LIMIT = 32 << 20


class Windows:
    """The promises of all channels that share one memory."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.promised = 0
        self.channels = 0

    def start(self) -> int:
        """A new channel's first window."""
        size = max(LEAST, min(START, (self.limit - self.promised) // 64))
        self.promised += size
        self.channels += 1
        return size

    @staticmethod
    def is_due(target: int, left: int) -> bool:
        """Whether a channel that was promised `target` and has `left` of it is to be promised more."""
        return left * 2 < target or target - left >= _STEP

    def renew(self, target: int) -> int:
        """What a channel may have from now on once `is_due`."""
        free = self.limit - self.promised - self.limit // _KEPT
        share = self.limit // max(1, self.channels)
        more = max(0, min((_GROWTH - 1) * target, MOST - target, free))
        if free < 0 and target > share:
            more = max(LEAST, share, target // 2) - target
        self.promised += more
        return target + more

    def end(self, target: int) -> None:
        """A channel is gone."""
        self.promised -= target
        self.channels -= 1
