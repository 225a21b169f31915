"""The bridge's process as it is, but for its link: `fake_sidecar.py DOOR TARGET_NETNS FACTS_JSON [no-hold]`.

`no-hold` stands for a kernel that has neither form of a packet queue.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

import uvloop
from fake_link import FakeLink  # the folder of this script is on its path

from bridge.adapters import nft
from bridge.model.facts import Facts
from bridge.sidecar.serve import Bridge


async def main(path: str, target: str, facts: str) -> None:
    known = Facts.from_json(json.loads(facts))
    bridge = Bridge(lambda config, dial, tell: FakeLink(config, target, known, tell), path=Path(path))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, bridge.stop)
    await bridge.run()


logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(relativeCreated)d %(name)s %(message)s")
if sys.argv[4:] == ["no-hold"]:
    nft.hold_syns = lambda *ignored: None
uvloop.run(main(*sys.argv[1:4]))
