"""`mbridge init`: a first mbridge.yaml that works and explains itself."""

from __future__ import annotations

import json
from pathlib import Path

import click

from bridge.cli.main import Caller
from bridge.cli.options import Command, common, target_argument
from bridge.errors import SpecError

EXAMPLES = """\
  mbridge init docker/shop-api                                 then: mbridge up
  mbridge init compose/shop/api --image node:22 --command "npm start"
"""
_TEXT = """\
# What `mbridge up` starts. Every key: mbridge config schema; where a value comes from: mbridge config show
target: {target}

app:
  image: {image}
  command: {command}
  volumes: [".:/src"]
  workdir: /src
  # ports: ["8000:8000"]        # published on this machine, as -p of docker run
  # env: {{ LOG_LEVEL: debug }}   # the app's own, on top of the target's environment

# outgoing:
#   rules:                      # first match wins; all else goes by the target
#     - {{ to: "*.corp.example:443", verdict: direct }}
#     - {{ to: 169.254.169.254, verdict: deny }}
#   loopback: [9092]            # ports of the target's own loopback

# env:
#   exclude: [AWS_*]
#   set: {{ LOG_LEVEL: debug }}
"""


@click.command("init", cls=Command, examples=EXAMPLES)
@target_argument()
@click.option("--image", metavar="IMAGE", default="python:3.12", show_default=True, help="Image of the app.")
@click.option("--command", "words", metavar="COMMAND", default="python -m http.server 8000", show_default=True, help="What the app runs.")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("mbridge.yaml"),
    show_default=True,
    help="Where to write it.",
)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@common
@click.pass_obj
def command(caller: Caller, /, target: str, image: str, words: str, output: Path, force: bool) -> None:
    """Write a first mbridge.yaml for TARGET, with the keys that are changed most."""
    import shlex

    from bridge.model.target import parse_target

    wanted = parse_target(target)
    try:
        argv = shlex.split(words)
    except ValueError as error:
        raise SpecError(f"--command {words!r}: {str(error).lower()}", hint="the words are cut as a shell cuts them") from error
    # JSON is YAML: a quoted text means itself, whatever it looks like.
    text = _TEXT.format(target=json.dumps(str(wanted)), image=json.dumps(image), command=json.dumps(argv))
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SpecError(f"{output} exists", hint="--force replaces it, --output names another") from None
    except OSError as error:
        raise SpecError(f"cannot write {output}: {(error.strerror or str(error)).lower()}", hint="--output FILE names another") from error
    caller.ui.note(f"wrote {output}; start it with: mbridge up")
