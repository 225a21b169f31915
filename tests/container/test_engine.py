"""The engine on this machine keeps the contract that the fake one of the unit tests keeps."""

from __future__ import annotations

import asyncio
import os

import pytest

from bridge.adapters.docker.endpoint import find_endpoint
from tests.lab.dockerlab import Lab
from tests.unit.contracts.engine import CONTRACT, keep


@pytest.mark.parametrize("check", CONTRACT)
def test_the_engine_keeps_the_contract_of_engines(lab: Lab, check: str) -> None:
    asyncio.run(keep(check, find_endpoint(None, os.environ), lab.lab_image))
