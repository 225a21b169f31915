"""Another release of mbridge, to meet this one: these sources with other version numbers, and with more to say.

Theory of operation: the package is copied and edited, `Release.cli` runs `mbridge` from there, and its images are this release's
with the edited files laid over them, under the names by which that release looks for its own. What it says more, as a newer
minor may: a field in every message and in every line of the bridge's door, a capability, and messages of a type that nobody knows.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker

import bridge
from bridge.adapters import images
from tests.lab.boxes import Cli

Which = images.Which
_MORE = """

_less = encode


def encode(message):
    value = json.loads(_less(message)) | {"since": {"another": ["release", 1, None]}}
    if "capabilities" in value:
        value["capabilities"] += ["teleport"]
    return json.dumps(value).encode() + END
"""
_SENT = "self._messages.send(control.encode(message))"
_SENT_MORE = f"""{_SENT}
        self._messages.send(b'{{"type": "greeting-of-another-release", "id": 1}}')"""
_SITE = "/opt/mbridge/lib/python3.11/site-packages"


@dataclass(frozen=True)
class Release:
    client: docker.DockerClient
    folder: Path
    changed: tuple[str, ...]

    def cli(self, state: Path, **environ: str) -> Cli:
        """`mbridge` of that release."""
        return Cli(state, {**environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"})

    def name(self, which: Which) -> str:
        """As that release calls its image."""
        program = f"from bridge.adapters import images; print(images.tag({which!r}))"
        done = subprocess.run([sys.executable, "-P", "-c", program], env={**os.environ, "PYTHONPATH": str(self.folder)},
                              capture_output=True, text=True, check=True)  # fmt: skip
        name = done.stdout.strip()
        assert name != images.tag(which), "this release's own image must never be overlaid"
        return name

    def build(self, which: Which) -> str:
        """The image's name."""
        name = self.name(which)
        if not images.present(self.client, which):
            images.build(self.client, which, lambda _: None)
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            files = {f"own/{path}": (self.folder / path).read_bytes() for path in self.changed}
            for path, data in {"Dockerfile": f"FROM {images.tag(which)}\nCOPY own/ {_SITE}/\n".encode(), **files}.items():
                member = tarfile.TarInfo(path)
                # Bytecode in the image is of sources with time 1: Python leaves it alone where time or size differ.
                member.size, member.mode, member.mtime = len(data), 0o644, 2
                tar.addfile(member, io.BytesIO(data))
        context.seek(0)
        self.client.images.build(fileobj=context, custom_context=True, tag=name, rm=True, labels={"mbridge.test": "release"})
        return name


@contextlib.contextmanager
def another_release(client: docker.DockerClient, folder: Path, release: str, link: tuple[int, int], stream: int = 1) -> Iterator[Release]:
    """One that calls itself `release` and speaks version `link` of the link, `stream` of the stream beneath; its images go with it."""
    here = Path(bridge.__file__).parent
    shutil.copytree(here, folder / "bridge", ignore=shutil.ignore_patterns("__pycache__"))
    edits = (
        ("bridge/__init__.py", r'__version__ = "[^"]*"', f'__version__ = "{release}"'),
        ("bridge/protocol/control.py", r"(?m)^VERSION = \(\d+, \d+\)", f"VERSION = {link}"),
        ("bridge/protocol/control.py", r"\Z", _MORE.replace("END", 'b""')),
        ("bridge/protocol/door.py", r"\Z", _MORE.replace("END", r'b"\n"')),
        ("bridge/protocol/preamble.py", r'MAGIC = b"MBR\d"', f'MAGIC = b"MBR{stream}"'),
        ("bridge/agent/serving.py", re.escape(_SENT), _SENT_MORE),
        ("bridge/adapters/ssh/client.py", re.escape(_SENT), _SENT_MORE),
    )
    for path, old, new in edits:
        text, count = re.subn(old, lambda _, new=new: new, (folder / path).read_text())  # as it is: backslashes stay
        assert count == 1, f"{path} does not hold {old} once"
        (folder / path).write_text(text)
    made = Release(client, folder, tuple({path for path, _, _ in edits}))
    try:
        yield made
    finally:
        for which in images.NAMES:
            with contextlib.suppress(docker.errors.ImageNotFound):
                client.images.remove(made.name(which), force=True)
