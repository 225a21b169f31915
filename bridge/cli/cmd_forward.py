"""`mbridge forward TARGET PORT…`: ports of what the target reaches, on this machine. Needs no container of the app's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from bridge.cli.main import Caller
from bridge.cli.options import Command, agent_options, common, config_option, stacked, target_argument, where_options
from bridge.errors import SpecError

EXAMPLES = """\
  mbridge forward docker/shop-api 8080                 the target's own port 8080, as localhost:8080
  mbridge forward docker/shop-api 15432:db:5432        what the target calls db:5432, as localhost:15432
  mbridge forward compose/shop/api 0:redis:6379        on any free port; the line printed says which
"""


@dataclass(frozen=True, slots=True)
class Forward:
    """`listen_host:listen_port` here is `host:port` as the target sees it; listen_port 0 = any free one."""

    listen_host: str
    listen_port: int
    host: str
    port: int

    def __str__(self) -> str:
        return f"{_bracketed(self.listen_host)}:{self.listen_port} -> {_bracketed(self.host)}:{self.port}"


@click.command("forward", cls=Command, examples=EXAMPLES)
@target_argument()
@click.argument("ports", metavar="PORT…", nargs=-1, required=True)
@click.option("--address", metavar="IP", default="127.0.0.1", show_default=True, help="Address of this machine to listen on.")
@stacked(where_options, agent_options, config_option)
@common
@click.pass_obj
def command(caller: Caller, /, target: str, ports: tuple[str, ...], address: str, config_file: str | None, **options: Any) -> int:
    """Bring ports of anything that TARGET reaches to this machine, until Ctrl-C.

    A PORT is [HERE:][HOST:]PORT: HERE on this machine (0: any free one), HOST as the target knows it (the target itself
    where none is named).
    """
    from bridge.cli import settings

    forwards = [parse_forward(text, address) for text in ports]
    wish = settings.target_wish(caller.environ, config_file, target, options)
    return caller.wiring.forward(wish, forwards, caller.ui)


def parse_forward(text: str, listen_host: str) -> Forward:
    """`8080`, `8080:80`, `db:5432`, `15432:db:5432`, `[fd00::1]:80`. Raises SpecError."""
    words = _words(text)
    port = _port(words.pop(), text, least=1)
    host = words.pop() if words and not words[-1].isdigit() else "127.0.0.1"
    here = _port(words.pop(), text, least=0) if words else port
    if words or not host:
        raise SpecError(f"{text!r} is no port to forward", hint="write PORT, HERE:PORT, HOST:PORT or HERE:HOST:PORT")
    return Forward(listen_host, here, host, port)


def _words(text: str) -> list[str]:
    """Cut at colons, less those within brackets. Raises SpecError."""
    before, bracket, rest = text.partition("[")
    if not bracket:
        return text.split(":")
    address, closed, after = rest.partition("]")
    if not closed:
        raise SpecError(f"{text!r} has no closing bracket", hint="an IPv6 address is written [fd00::1]:80")
    return [*(before.removesuffix(":").split(":") if before else []), address, *after.removeprefix(":").split(":")]


def _port(word: str, text: str, least: int) -> int:
    if not word.isascii() or not word.isdigit() or not least <= int(word) <= 65535:
        raise SpecError(f"{word!r} in {text!r} is no port", hint=f"a port is a number from {least} to 65535")
    return int(word)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
