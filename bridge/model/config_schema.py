"""mbridge.yaml as a pydantic model: one model checks the file and makes its JSON Schema.

Each field's description is what the schema shows. Parsers of single values (targets, rules) are model/'s own; here they are
only called. Keys of features that are not built yet are known already, so that a file for a later version is understood;
`not_built` says which of them ask for more than this version does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, WithJsonSchema, model_validator

from bridge.errors import SpecError
from bridge.model.rules import parse_rule
from bridge.model.target import parse_target
from bridge.model.yaml_lines import as_text

T = TypeVar("T")

_PORT_RANGE = r"\d{1,6}(?:-\d{1,6})?"
_PUBLISHED = re.compile(rf"(?:(?:\[[0-9a-fA-F:.]+\]|\d+(?:\.\d+){{3}}):)?(?:({_PORT_RANGE})?:)?({_PORT_RANGE})(?:/(?:tcp|udp|sctp))?")
_BRIDGED = re.compile(r"(\d{1,6})(?::(\d{1,6}))?(?:/(?:tcp|udp))?")
_RATE = re.compile(r"(\d+(?:\.\d+)?) ?(|[kMG]i?)B?(?:/s)?")
_RATE_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def _checked(parse: Callable[[T], object]) -> Callable[[T], T]:
    """A validator that keeps the value where `parse` takes it; its SpecError becomes pydantic's kind of error."""

    def check(value: T) -> T:
        try:
            parse(value)
        except SpecError as exc:
            raise ValueError(f"{exc.message} ({exc.hint})" if exc.hint else exc.message) from exc
        return value

    return check


def _port_number(number: int) -> None:
    if not 0 < number <= 65535:
        raise SpecError(f"{number} is no port: ports go from 1 to 65535")


def _ports(expression: re.Pattern[str], form: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        found = expression.fullmatch(text)
        if found is None:
            raise SpecError(f"{text!r} is no port: write {form}")
        for part in found.groups():
            numbers = [int(number) for number in (part or "").split("-") if number]
            for number in numbers:
                _port_number(number)
            if numbers != sorted(numbers):
                raise SpecError(f"{text!r} is a range that ends before it begins")

    return check


def _bridged(text: str) -> None:
    if text != "auto":
        _ports(_BRIDGED, "8080, 8080:3000 (target:app), 53/udp or auto")(text)


def _regex(text: str) -> None:
    try:
        re.compile(text)
    except re.error as exc:
        raise SpecError(f"{text!r} is no regular expression: {exc}") from exc


def _absolute(text: str) -> None:
    if not text.startswith("/"):
        raise SpecError(f"{text!r} is no absolute path")


def _rate(text: str) -> None:
    if not _RATE.fullmatch(text):
        raise SpecError(f"{text!r} is no rate: write 16MB (per second)")


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a text has a NUL in it")
    return text


def _env_entries(value: object) -> object:
    """`{NAME: value, OTHER: null}` as docker run's `-e` has it: NAME=value, OTHER."""
    if not isinstance(value, Mapping):
        return value
    return [name if text is None else f"{name}={as_text(text)}" for name, text in value.items()]


def _words(value: object) -> object:
    return value.split() if isinstance(value, str) else value


# A number is taken where a text is meant ("user: 1000"), as it was written.
Text = Annotated[
    str, BeforeValidator(as_text), AfterValidator(_no_nul), WithJsonSchema({"type": ["string", "number", "boolean"]}, mode="validation")
]
Texts = tuple[Text, ...]
Port = Annotated[StrictInt, AfterValidator(_checked(_port_number)), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 65535})]
TargetText = Annotated[str, AfterValidator(_checked(parse_target))]
PublishedPort = Annotated[Text, AfterValidator(_checked(_ports(_PUBLISHED, "8000, 8080:8000 or 127.0.0.1:8080:8000/tcp")))]
BridgedPort = Annotated[Text, AfterValidator(_checked(_bridged))]
AbsolutePath = Annotated[str, AfterValidator(_checked(_absolute))]
Rate = Annotated[Text, AfterValidator(_checked(_rate))]
EnvEntries = Annotated[
    Texts,
    BeforeValidator(_env_entries),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}},
                {"type": "array", "items": {"type": "string"}},
            ]
        }
    ),
]
# Split at blanks only; quoting is a shell's, and a list says it better.
Command = Annotated[
    Texts,
    BeforeValidator(_words),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": ["string", "number", "boolean"]}}]}),
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class App(_Part):
    """The app's container; keys mean what they mean in `docker run`."""

    image: Text | None = Field(default=None, description="Image of the app.")
    command: Command = Field(default=(), description="Command and arguments; a text is split at blanks.")
    name: Text | None = Field(default=None, description="Name of the app's container.")
    ports: tuple[PublishedPort, ...] = Field(default=(), description="Published ports, as in -p.")
    volumes: Texts = Field(default=(), description="Volumes, as in -v.")
    mounts: Texts = Field(default=(), description="Mounts, as in --mount.")
    tmpfs: Texts = ()
    env: EnvEntries = Field(default=(), description="Variables of the app's own; they beat the target's. Null passes the caller's.")
    env_files: Texts = ()
    workdir: Text | None = None
    user: Text | None = None
    entrypoint: Text | None = None
    interactive: StrictBool = False
    tty: StrictBool = False
    networks: Texts = Field(default=(), description="Networks of the engine that the app is in beside the target's.")
    add_hosts: Texts = ()
    cap_add: Texts = ()
    cap_drop: Texts = ()
    security_opt: Texts = ()
    read_only: StrictBool = False
    pull: Literal["always", "missing", "never"] = "missing"
    platform: Text | None = None
    memory: Text | None = None
    cpus: Text | None = None
    gpus: Text | None = None
    labels: Annotated[Texts, BeforeValidator(_env_entries)] = ()
    compose: Text | None = Field(default=None, description="A compose file whose service is the app.")
    service: Text | None = None
    devcontainer: Text | None = Field(default=None, description="Folder of a dev container that is the app.")


class RuleEntry(_Part):
    """One rule of outgoing traffic; the first that matches decides."""

    to: str = Field(description="A network, an address or a host name (* for any characters), with :PORT or :FIRST-LAST.")
    verdict: Literal["cluster", "direct", "deny"] = "cluster"
    protocol: Literal["tcp", "udp"] | None = None

    @model_validator(mode="after")
    def _parsed(self) -> Self:
        _checked(parse_rule)(self.mapping())
        return self

    def mapping(self) -> dict[str, Any]:
        """As BridgeConfig and parse_rule take it."""
        return self.model_dump(exclude_none=True)


class Outgoing(_Part):
    """What the app opens."""

    rules: tuple[RuleEntry, ...] = ()
    loopback: tuple[Port, ...] = Field(default=(), description="Ports of the target's loopback that the app reaches on its own.")
    unix: tuple[AbsolutePath, ...] = Field(default=(), description="Unix sockets of the target.")


class Pattern(_Part):
    """A text that is not matched exactly: by its beginning, or by a regular expression."""

    prefix: str | None = None
    regex: Annotated[str, AfterValidator(_checked(_regex))] | None = None

    @model_validator(mode="before")
    @classmethod
    def _exact(cls, value: object) -> object:
        if not isinstance(value, Mapping) or len(value) != 1:
            raise ValueError("a text, {prefix: …} or {regex: …} is expected")
        return value


def _exact_or_pattern(value: object) -> object:
    text = as_text(value)
    return text if isinstance(text, str) else Pattern.model_validate(value)


Match = Annotated[Any, BeforeValidator(_exact_or_pattern), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})]


class HttpMatch(_Part):
    """Exactly one of these."""

    header: Match = Field(default=None, description='"name: value"')
    path: Match = None
    method: Match = None
    host: Match = None
    any: tuple[HttpMatch, ...] | None = None
    all: tuple[HttpMatch, ...] | None = None
    not_: HttpMatch | None = Field(default=None, alias="not")

    @model_validator(mode="before")
    @classmethod
    def _one(cls, value: object) -> object:
        if isinstance(value, Mapping) and len(value) != 1:
            raise ValueError("exactly one of header, path, method, host, any, all, not is expected")
        return value


class Tls(_Part):
    cert: AbsolutePath
    key: AbsolutePath


class Incoming(_Part):
    """What is opened towards the target."""

    mode: Literal["off", "mirror", "steal"] = "off"
    ports: tuple[BridgedPort, ...] = Field(default=(), description="target:app, or auto.")
    http: HttpMatch | None = None
    fallback: Literal["target", "reset"] = "target"
    tls: Tls | None = None


class FileRule(_Part):
    """A glob, and where such paths are."""

    path: AbsolutePath
    verdict: Literal["cluster", "cluster-rw", "app", "absent"] | None = None
    map: AbsolutePath | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.verdict is None) == (self.map is None):
            raise ValueError("either verdict or map is expected")
        return self


class Files(_Part):
    """The target's files."""

    mode: Literal["off", "volumes", "read", "write"] = "off"
    rules: tuple[FileRule, ...] = ()
    stall_s: StrictInt | None = Field(default=None, ge=1)


class Env(_Part):
    """The target's environment."""

    include: Texts = Field(default=(), description="Globs of names that the default exclude list leaves out.")
    exclude: Texts = Field(default=(), description="Globs of names that the app does not get.")
    set: dict[str, Text] = Field(default_factory=dict)


class Agent(_Part):
    """Our side next to the target."""

    kind: Literal["auto", "ephemeral", "pod"] = "auto"
    image: Text | None = None
    ttl: StrictInt = Field(default=180, ge=10, le=86400, description="Seconds that the agent lives without a link.")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    # Kubernetes allows none of these on an ephemeral container: they are for helper pods alone.
    service_account: Text | None = Field(default=None, description="Helper pod: the service account it runs as.")
    pull_secrets: Texts = Field(default=(), description="Helper pod: names of image pull secrets of its namespace.")
    tolerations: tuple[dict[str, Any], ...] = Field(default=(), description="Helper pod: tolerations, as in a pod's spec.")
    resources: dict[str, Any] = Field(default_factory=dict, description="Helper pod: requests and limits, as in a container's spec.")
    annotations: dict[str, Text] = Field(default_factory=dict, description="Helper pod: annotations.")
    deadline: StrictInt = Field(default=43200, ge=60, le=604800, description="Helper pod: seconds after which Kubernetes ends it.")


class Link(_Part):
    """How bridge and agent are joined."""

    via: Literal["auto", "direct", "port-forward", "exec"] = "auto"
    max_rate: Rate | None = Field(default=None, description="Bound of mirrored traffic, per second.")

    @property
    def max_rate_bytes(self) -> int | None:
        found = _RATE.fullmatch(self.max_rate or "")
        return int(float(found[1]) * _RATE_UNITS[found[2]]) if found else None


class Config(_Part):
    """One session's settings."""

    target: TargetText | None = Field(default=None, description="KIND/NAME: docker/NAME, compose/PROJECT/SERVICE, deploy/NAME, …")
    namespace: Text | None = None
    context: Text | None = Field(default=None, description="Context of the kubeconfig.")
    kubeconfig: Text | None = None
    container: Text | None = Field(default=None, description="Container of the target, where it has several.")
    docker_context: Text | None = None
    yes_host_network: StrictBool = Field(default=False, description="Go on where the target shares its host's network.")
    app: App = App()
    outgoing: Outgoing = Outgoing()
    incoming: Incoming = Incoming()
    files: Files = Files()
    env: Env = Env()
    agent: Agent = Agent()
    link: Link = Link()

    @property
    def rules(self) -> tuple[dict[str, Any], ...]:
        """The outgoing rules as SessionWish and BridgeConfig take them."""
        return tuple(rule.mapping() for rule in self.outgoing.rules)


class File(Config):
    """The whole of mbridge.yaml. The keys beside `apps` are its apps' defaults."""

    apps: dict[str, Config] = Field(default_factory=dict, description="Several sessions: each with the same keys.")


def not_built(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """What `config` asks for and this version cannot do: the key's path, and the reason."""
    later = "not built yet in this version"
    incoming, files, app = config.incoming, config.files, config.app
    if incoming.mode != "off":
        yield ("incoming", "mode"), f"incoming traffic ({incoming.mode}) is {later}; only off works"
    elif incoming.ports and "mode" not in incoming.model_fields_set:
        yield ("incoming", "ports"), f"incoming traffic is {later}; only mode: off works"
    if files.mode != "off":
        yield ("files", "mode"), f"files ({files.mode}) is {later}; only off works"
    elif files.rules and "mode" not in files.model_fields_set:
        yield ("files", "rules"), f"files of the target are {later}; only mode: off works"
    if config.outgoing.unix:
        yield ("outgoing", "unix"), f"Unix sockets of the target are {later}"
    if app.compose or app.service:
        yield ("app", "compose" if app.compose else "service"), f"a compose service as the app is {later}; name its image"
    if app.devcontainer:
        yield ("app", "devcontainer"), f"a dev container as the app is {later}; name its image"


def schema() -> dict[str, Any]:
    """The JSON Schema of mbridge.yaml."""
    made = File.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "mbridge.yaml"}
