"""The carriers that every machine has pass the contract; Docker's and Kubernetes' do so in their own levels."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from tests.unit.contracts import carriers


@pytest.mark.parametrize("factory", [carriers.socket_pair, carriers.tcp, carriers.pipe_pair])
@pytest.mark.parametrize(
    "check",
    [carriers.bytes_pass_both_ways_at_once, carriers.a_cut_loses_and_repeats_nothing, carriers.an_end_in_order_delivers_everything],
)
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])  # the host's loop; the bridge's and the agent's
def test_a_carrier_keeps_the_contract(check, factory, run) -> None:
    async def test() -> None:
        async with asyncio.timeout(10):
            await check(factory, 3 << 20)

    run(test())
