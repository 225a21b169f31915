"""Receive windows: what a channel is promised, and that the sum stays bounded whatever channels do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.adapters.ssh.windows import LEAST, MOST, START, Windows

MiB = 1 << 20


def test_a_channel_starts_small_and_grows_fast_with_use_to_its_most() -> None:
    windows = Windows(256 * MiB)
    target = windows.start()
    seen = [target]
    while target < MOST:
        target = windows.renew(target)
        seen.append(target)
    assert seen == [START << step for step in (0, 2, 4, 6)]
    assert windows.renew(target) == MOST


def test_with_many_channels_a_new_one_starts_smaller() -> None:
    windows = Windows(32 * MiB)
    starts = [windows.start() for _ in range(4096)]
    assert starts[0] == START
    assert starts == sorted(starts, reverse=True)
    assert starts[-1] == LEAST
    assert windows.promised <= 32 * MiB + 4096 * LEAST


def test_one_that_holds_more_than_its_share_gives_back_as_it_is_used() -> None:
    windows = Windows(16 * MiB)
    large = windows.start()
    while large < MOST:
        large = windows.renew(large)
    for _ in range(1000):
        windows.start()
    assert windows.limit - windows.promised < 2 * MiB
    for _ in range(12):
        large = windows.renew(large)
    assert large < MOST
    assert windows.limit - windows.promised >= 2 * MiB


@given(st.lists(st.tuples(st.sampled_from(["start", "renew", "end"]), st.integers(0, 1 << 20)), max_size=400))
def test_the_sum_is_bounded_and_returns_to_nothing(steps: list[tuple[str, int]]) -> None:
    windows = Windows(4 * MiB)
    held: list[int] = []
    for step, which in steps:
        if step == "start":
            held.append(windows.start())
        elif held:
            at = which % len(held)
            if step == "renew":
                held[at] = windows.renew(held[at])
            else:
                windows.end(held.pop(at))
        assert windows.promised == sum(held) <= 4 * MiB + LEAST * len(held)
        assert all(LEAST <= target <= MOST for target in held)
    for target in held:
        windows.end(target)
    assert windows.promised == 0


def test_a_small_window_is_renewed_by_the_half_and_a_large_one_by_the_mebibyte() -> None:
    assert not Windows.is_due(START, START // 2)
    assert Windows.is_due(START, START // 2 - 1)
    assert not Windows.is_due(MOST, MOST - MiB + 1)
    assert Windows.is_due(MOST, MOST - MiB)
