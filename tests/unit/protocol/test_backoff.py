"""Waits between attempts."""

from __future__ import annotations

from bridge.protocol.backoff import Backoff


def test_waits_double_from_a_tenth_of_a_second_to_ten() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.wait_s() for _ in range(9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_jitter_takes_away_up_to_half() -> None:
    backoff = Backoff(lambda: 0.999)
    assert all(low <= backoff.wait_s() <= high for low, high in ((0.05, 0.1), (0.1, 0.2), (0.2, 0.4)))


def test_success_starts_over() -> None:
    backoff = Backoff(lambda: 0.0)
    for _ in range(5):
        backoff.wait_s()
    backoff.reset()
    assert backoff.wait_s() == 0.1
