"""mbridge: a program on the developer's machine gets the network identity of a container or pod elsewhere.

The map. Four kinds of process, two sides, one link (docs/architecture.md draws them and follows one flow through):

    developer's machine or workspace                            the target's engine
      host CLI   bridge.cli       plan, credentials, carriers
      pause      `sleep`          owns the session's netns
      bridge     bridge.sidecar   wires that netns, resolver  ══ SSH ══  agent   bridge.agent, in the target's netns
      app        the user's       no privilege from us

    errors      one class per reaction                            model       frozen values and their parsers
    protocol    bytes and events in, commands out, no I/O         engine      asyncio: what happens when
    adapters    one outside system each, never one another        cli, agent, sidecar   the entry points; they wire

Who may import whom is in pyproject.toml ([tool.importlinter]) and checked by `./dev lint`.
"""

__version__ = "0.1.0"
