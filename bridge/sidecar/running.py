"""The bridge's process: the one place where its engine meets its adapters. MBRIDGE_LOG=debug tells each flow's story on stderr."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable

import uvloop

from bridge.adapters.resumable import ResumableTransport
from bridge.adapters.ssh import connect_ssh
from bridge.engine.supervisor import Supervisor
from bridge.model.facts import BridgeConfig
from bridge.protocol.door import LinkStatus
from bridge.sidecar.handing import open_handing
from bridge.sidecar.serve import Bridge, Dial, Supervised


def main() -> int:
    """Serve until `stop` or SIGTERM. A bug ends the process with its traceback in the container's log; the netns stays closed."""
    level = logging.DEBUG if os.environ.get("MBRIDGE_LOG", "").lower() == "debug" else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for library in ("asyncssh", "asyncio", "pyroute2"):  # pyroute2 has several lines for each message of the kernel's
        logging.getLogger(library).setLevel(logging.WARNING)
    _raise_limits()
    uvloop.run(_serve())
    return 0


async def _serve() -> None:
    bridge = Bridge(_make_link)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, bridge.stop)
    await bridge.run()


def _make_link(config: BridgeConfig, dial: Dial, on_status: Callable[[LinkStatus], None]) -> Supervised:
    loop = asyncio.get_running_loop()
    return Supervisor(
        private_key=config.private_key,
        host_key=config.host_key,
        agent_id=config.agent_id,
        dial=dial,
        on_status=on_status,
        make_transport=lambda: ResumableTransport.client(loop),
        connect_ssh=connect_ssh,
        now=time.time,
        random=random.random,
        handing=open_handing(),
    )


def _raise_limits() -> None:
    """A flow is a descriptor, and the usual soft limit is 1,024 (getrlimit(2))."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
