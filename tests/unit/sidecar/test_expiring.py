from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence

import pytest

from bridge.errors import KernelLacks
from bridge.model.rules import KEEP_S, Route, RuleSet, Verdict, parse_rule
from bridge.sidecar import expiring
from tests.unit import virtual

GIT, ORDERS = "git.corp.example", "orders.shop"
SHARED, OTHER = "192.0.2.7", "192.0.2.8"
ENTRIES = (("*.corp.example", "direct"), ("*.bad.example", "deny"))


class Kernel:
    """Its rules, and which of them it does not take away just now."""

    def __init__(self) -> None:
        self.standing: list[Route] = []
        self.keeps: Callable[[Route], bool] = lambda route: False
        self.turns = 0

    async def forget(self, routes: Sequence[Route]) -> None:
        self.turns += 1
        for route in routes:
            if self.keeps(route):
                raise KernelLacks("the kernel refused rule del")
            with contextlib.suppress(ValueError):
                self.standing.remove(route)

    def verdict(self, address: str) -> Verdict:
        covering = [route for route in self.standing if route.network == f"{address}/32"]
        return min(covering, key=lambda route: route.priority).verdict if covering else Verdict.CLUSTER


Scenario = Callable[[RuleSet, Kernel], Coroutine[None, None, None]]


def play(scenario: Scenario) -> None:
    async def all_of_it() -> None:
        rules, kernel = RuleSet(tuple(parse_rule({"to": to, "verdict": verdict}) for to, verdict in ENTRIES)), Kernel()
        async with asyncio.TaskGroup() as group:  # as the bridge's: a task that fails ends it
            now = asyncio.get_running_loop().time
            task = group.create_task(expiring.expire(rules, kernel.forget, now), name="expiry")
            await scenario(rules, kernel)
            task.cancel()

    virtual.run(all_of_it())


def _learn(rules: RuleSet, kernel: Kernel, name: str, address: str) -> None:
    kernel.standing += rules.learn(name, [address], 60, asyncio.get_running_loop().time())


async def _a_day() -> None:
    await asyncio.sleep(KEEP_S + 60 + expiring.EVERY_S)


def test_what_has_expired_is_taken_away() -> None:
    async def scenario(rules: RuleSet, kernel: Kernel) -> None:
        _learn(rules, kernel, GIT, OTHER)
        assert kernel.verdict(OTHER) is Verdict.DIRECT
        await _a_day()
        assert kernel.standing == []

    play(scenario)


def test_what_the_kernel_did_not_take_away_is_taken_away_at_a_later_turn() -> None:
    async def scenario(rules: RuleSet, kernel: Kernel) -> None:
        kernel.keeps = lambda route: True
        _learn(rules, kernel, GIT, OTHER)
        await _a_day()
        assert kernel.standing != []
        kernel.keeps = lambda route: False
        await asyncio.sleep(expiring.EVERY_S)
        assert kernel.standing == []

    play(scenario)


@pytest.mark.parametrize("kept", list(Verdict), ids=lambda verdict: verdict.value)
def test_an_address_is_at_no_time_more_open_than_before(kept: Verdict) -> None:
    """A name of the cluster's and a direct one have it both, so CLUSTER stands before DIRECT; whichever stays, it is no DIRECT alone."""

    async def scenario(rules: RuleSet, kernel: Kernel) -> None:
        kernel.keeps = lambda route: route.verdict is kept
        for name in (ORDERS, GIT):
            _learn(rules, kernel, name, SHARED)
        _learn(rules, kernel, "x.bad.example", OTHER)
        assert kernel.verdict(SHARED) is Verdict.CLUSTER
        assert kernel.verdict(OTHER) is Verdict.DENY
        await _a_day()
        assert kernel.verdict(SHARED) is Verdict.CLUSTER
        assert all(route.verdict is not Verdict.DIRECT for route in kernel.standing) or kept is Verdict.DIRECT

    play(scenario)


def test_what_an_answer_wants_again_meanwhile_is_not_taken_away() -> None:
    async def scenario(rules: RuleSet, kernel: Kernel) -> None:
        kernel.keeps = lambda route: True
        _learn(rules, kernel, "x.bad.example", OTHER)
        await _a_day()
        _learn(rules, kernel, "x.bad.example", OTHER)
        kernel.keeps = lambda route: False
        turns = kernel.turns
        await asyncio.sleep(3 * expiring.EVERY_S)
        assert kernel.turns > turns
        assert kernel.verdict(OTHER) is Verdict.DENY

    play(scenario)
