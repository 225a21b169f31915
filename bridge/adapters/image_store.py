"""Images of an engine as files and in registries: list, save, load, push, prune. Building them is images.py's.

docker-py, because it knows the credential helpers of a push. Limits: blocking, call it in a thread; tar files are those of
`docker save`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.tls
import requests

from bridge.errors import EngineUnavailable, HostError

Progress = Callable[[str], None]
_REFUSED = re.compile(r"denied|unauthori[sz]ed|authenti|authori[sz]ation|credentials", re.I)
_OURS = re.compile(r"mbridge-(bridge|agent):")


@dataclass(frozen=True, slots=True)
class Old:
    """An image of ours that nothing needs: `names` it has on the engine (none: a build has replaced it), `what` it is."""

    id: str
    names: tuple[str, ...]
    what: str
    size: int


def connected(
    url: str, *, ca: str | None = None, cert: str | None = None, key: str | None = None, verify: bool = True, tls: bool = False
) -> docker.DockerClient:
    """A client of the engine at `url`. Raises EngineUnavailable."""
    with translated():
        pair = (cert, key) if cert and key else None
        setting = docker.tls.TLSConfig(client_cert=pair, ca_cert=ca, verify=verify and (ca or True)) if tls else False
        return docker.DockerClient(base_url=url, tls=setting, version="auto", timeout=600)


def size(client: docker.DockerClient, name: str) -> int | None:
    """Bytes of the image, None where the engine has none of that name."""
    with translated():
        try:
            return int(client.images.get(name).attrs["Size"])
        except docker.errors.ImageNotFound:
            return None


def save(client: docker.DockerClient, names: Sequence[str], file: Path) -> None:
    """Write the images as one tar, as `docker save` does; a tar that was cut off is not left behind."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        api: Any = client.api  # no public call of docker-py takes several images
        with translated(), partial.open("wb") as out:
            answer = api._get(api._url("/images/get"), params={"names": list(names)}, stream=True)
            api._raise_for_status(answer)
            for chunk in answer.iter_content(1 << 20):
                out.write(chunk)
        partial.replace(file)
    except OSError as error:
        raise HostError(f"cannot write {file}: {(error.strerror or str(error)).lower()}") from error
    finally:
        partial.unlink(missing_ok=True)


def load(client: docker.DockerClient, file: Path) -> list[str]:
    """Give the engine the images of a tar; their names."""
    try:
        with file.open("rb") as data, translated():
            return [name for image in client.images.load(data) for name in image.tags or [str(image.id)]]
    except docker.errors.ImageLoadError as error:
        raise HostError(f"{file} holds no images: {error}", hint="mbridge images save FILE writes such a file") from error
    except OSError as error:
        raise HostError(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error


def push(client: docker.DockerClient, name: str, repository: str, progress: Progress) -> str:
    """Push `name` as REPOSITORY:ITS-TAG and return that; the engine keeps no name of it."""
    tag = name.rpartition(":")[2]
    with translated():
        client.images.get(name).tag(repository, tag)
        try:
            for event in client.images.push(repository, tag=tag, stream=True, decode=True):
                if "error" in event:
                    said, host = str(event["error"]), repository.partition("/")[0]
                    hint = f"docker login {host}" if _REFUSED.search(said) else f"curl https://{host}/v2/ shows whether a registry is there"
                    raise HostError(f"{repository} did not take the image: {said}", hint=hint)
                if event.get("status"):
                    progress(f"{event.get('id', '')} {event['status']}".strip())
        finally:
            client.images.remove(f"{repository}:{tag}", noprune=True)
    return f"{repository}:{tag}"


def superseded(client: docker.DockerClient, current: Collection[str]) -> list[Old]:
    """Our images but the `current` ones, those that a container uses, running or not, and those that bear a name of the user's."""
    with translated():
        used = {str(container["ImageID"]) for container in client.api.containers(all=True)}
        images = [image for label in ("mbridge.image", "mbridge.stage") for image in client.api.images(filters={"label": label})]
    return [old for image in images if image["Id"] not in used and (old := _old(image, current)) is not None]


def _old(image: Mapping[str, Any], current: Collection[str]) -> Old | None:
    labels: Mapping[str, str] = image["Labels"]
    names = tuple(name for name in image.get("RepoTags") or () if name != "<none>:<none>")
    stage_of = labels.get("mbridge.stage")
    if stage_of in current or any(name in current or not _OURS.match(name) for name in names):
        return None
    what = f"stage of {stage_of}" if stage_of else names[0] if names else f"{labels['mbridge.image']}, replaced by a later build"
    return Old(str(image["Id"]), names, what, int(image["Size"]))


def remove(client: docker.DockerClient, old: Old) -> bool:
    """False where the engine keeps it: a container has begun to use it, or an image of the user's was made from it."""
    with translated():
        for name in old.names or (old.id,):
            try:
                client.api.remove_image(name)
            except docker.errors.ImageNotFound:
                continue  # someone was quicker
            except docker.errors.APIError as error:
                if error.status_code != 409:
                    raise
                return False
    return True


def disk_usage(client: docker.DockerClient) -> int:
    """Bytes of all layers on the engine: images share them, so their sizes do not add up."""
    with translated():
        return int(client.df().get("LayersSize") or 0)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """docker-py's errors in ours."""
    try:
        yield
    except docker.errors.ImageLoadError:
        raise  # the file's fault; `load` says which
    except docker.errors.ImageNotFound as error:
        raise HostError(f"the engine has no such image: {error.explanation}", hint="mbridge images build") from error
    except docker.errors.APIError as error:
        raise HostError(f"the engine refused: {error.explanation or error}") from error
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise EngineUnavailable(f"the engine cannot be used: {error}", hint="docker version") from error
