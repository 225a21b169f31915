"""`mbridge diagnose`: one tar file with what a bug report needs; secrets are taken out before they are packed."""

from __future__ import annotations

import io
import json
import os
import platform
import tarfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import click

import bridge
from bridge.cli.looking import Where
from bridge.cli.main import Caller
from bridge.cli.options import Command, common, docker_context_option
from bridge.errors import BridgeError, HostError

EXAMPLES = """\
  mbridge diagnose                            mbridge-diagnose-DATE.tar.gz, here
  mbridge diagnose --output /tmp/report.tar.gz
  tar -tzf mbridge-diagnose-*.tar.gz          look before you send it
"""


@click.command("diagnose", cls=Command, examples=EXAMPLES)
@click.option("--output", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Where to write it.")
@docker_context_option
@common
@click.pass_obj
def command(caller: Caller, /, output: Path | None, docker_context: str | None) -> None:
    """Pack versions, doctor's findings, sessions, plans, settings and logs into one file.

    Values of environments, keys, tokens, passwords and authorisation headers are replaced; look before you send it.
    """
    file = output or Path(f"mbridge-diagnose-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    members = collect(caller, docker_context)
    try:
        with open(file, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as raw, tarfile.open(fileobj=raw, mode="w:gz") as tar:
            for name, text in members.items():
                data = text.encode(errors="replace")
                member = tarfile.TarInfo(f"mbridge-diagnose/{name}")
                member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
                tar.addfile(member, io.BytesIO(data))
    except FileExistsError:
        raise HostError(f"{file} exists", hint="--output FILE names another") from None
    except OSError as error:
        raise HostError(f"cannot write {file}: {error.strerror}") from error
    caller.ui.say(str(file))
    caller.ui.note("secrets are replaced; look before you send it: tar -xzf " + str(file))


def collect(caller: Caller, docker_context: str | None) -> dict[str, str]:
    """The bundle's files, redacted. What cannot be had is said in its place."""
    from dataclasses import asdict

    from bridge.cli import redaction, settings

    def attempt(work: Callable[[], str]) -> str:
        try:
            return work()
        except BridgeError as error:
            return f"{error.message}\n"
        except Exception:  # a bug that is to be reported must not keep its report from being made
            return traceback.format_exc()

    def config() -> str:
        values = settings.with_origins(settings.load(caller.environ, None, {}))
        return json.dumps(redaction.of_json({one.key: {"value": one.value, "origin": one.origin} for one in values}), indent=1, default=str)

    def records() -> str:
        members.update(caller.wiring.records())
        return "plan, status and log of each session are beside this\n"

    members = {
        "version.txt": f"mbridge {bridge.__version__}\nPython {platform.python_version()}\n{platform.platform()}\n",
        "doctor.json": attempt(
            lambda: json.dumps([asdict(one) for one in caller.wiring.checks(None, Where(docker_context), caller.ui)], indent=1)
        ),
        "status.json": attempt(lambda: json.dumps([one.to_json() for one in caller.wiring.sessions()], indent=1)),
        "config.json": attempt(config),
    }
    members["sessions.txt"] = attempt(records)
    return {name: redaction.of_text(text) if not name.endswith(".json") else redaction.of_document(text) for name, text in members.items()}
