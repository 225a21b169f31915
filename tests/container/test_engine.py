"""The engine on this machine keeps the contract that the fake one of the unit tests keeps."""

from __future__ import annotations

import asyncio
import os

from bridge.adapters.docker.endpoint import find_endpoint
from tests.lab.dockerlab import Lab
from tests.unit.contracts.engine import check_engine


def test_the_engine_keeps_the_contract_of_engines(lab: Lab) -> None:
    asyncio.run(check_engine(find_endpoint(None, os.environ), lab.lab_image))
