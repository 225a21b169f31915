"""The error tree on one page: one class per reaction.

    BridgeError            exit 1   the root: message in the user's words, hint = what to do next
    ├ SpecError            exit 2   a flag, or a line of mbridge.yaml (file:line)
    ├ HostError            exit 3   this machine or its engine: MissingCapability, KernelLacks, EngineUnavailable
    ├ ClusterError         exit 4   the target's side: Forbidden(verb, resource, namespace), TargetNotFound, AgentFailed
    ├ LinkError            exit 5   HostKeyMismatch, KeyRefused, VersionMismatch, LinkLost (the supervisor retries this one)
    ├ ProtocolError        exit 6   LocalProtocolError = our bug, RemoteProtocolError = theirs
    └ CleanupError         exit 7   what is left behind, and the command that removes it

`run` and `exec` end with the app's own code, or with 125 when mbridge failed before it, whatever the kind.
"""

from __future__ import annotations


class BridgeError(Exception):
    """Root of all that is expected to go wrong; `message` is one line, `hint` names the command or change that helps."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SpecError(BridgeError):
    exit_code = 2


class HostError(BridgeError):
    exit_code = 3


class MissingCapability(HostError):
    pass


class KernelLacks(HostError):
    pass


class EngineUnavailable(HostError):
    pass


class ClusterError(BridgeError):
    exit_code = 4


class Forbidden(ClusterError):
    """The caller's own rights do not suffice: which verb on which resource ("pods/ephemeralcontainers"), and where."""

    def __init__(self, verb: str, resource: str, namespace: str | None, *, hint: str | None = None) -> None:
        self.verb, self.resource, self.namespace = verb, resource, namespace
        kind, _, subresource = resource.partition("/")
        where, flags = (f" in namespace '{namespace}'", f" -n {namespace}") if namespace else (" in the cluster", "")
        asked = f"{verb} {kind}" + (f" --subresource={subresource}" if subresource else "")
        super().__init__(f"not allowed to {verb} {resource}{where}", hint=hint or f"kubectl auth can-i {asked}{flags}")


class TargetNotFound(ClusterError):
    pass


class AgentFailed(ClusterError):
    pass


class LinkError(BridgeError):
    exit_code = 5


class HostKeyMismatch(LinkError):
    pass


class KeyRefused(LinkError):
    pass


class VersionMismatch(LinkError):
    pass


class LinkLost(LinkError):
    pass


class ProtocolError(BridgeError):
    exit_code = 6


class LocalProtocolError(ProtocolError):
    pass


class RemoteProtocolError(ProtocolError):
    pass


class CleanupError(BridgeError):
    exit_code = 7


def first_of(group: BaseExceptionGroup[BridgeError]) -> BridgeError:
    """The one to tell of, where tasks failed side by side: a group in a group is looked into."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, BridgeError)  # `except*` and `subgroup` leave no others
    return first
