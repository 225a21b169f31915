"""Images as files and in registries, against a docker-py client that answers as told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
import requests

from bridge.adapters import image_store
from bridge.errors import EngineUnavailable, HostError


class Client:
    """The few calls of docker-py that image_store makes."""

    def __init__(
        self, chunks: list[bytes] | None = None, events: list[dict[str, str]] | None = None, fails: Exception | None = None
    ) -> None:
        self.images = self.api = self
        self.chunks, self.events, self.fails = chunks or [], events or [], fails
        self.done: list[tuple[str, ...]] = []

    def get(self, name: str) -> Any:
        if self.fails:
            raise self.fails
        return SimpleNamespace(attrs={"Size": 90}, tag=lambda repository, tag: self.done.append(("tag", f"{repository}:{tag}")))

    def _url(self, path: str) -> str:
        return path

    def _get(self, url: str, params: dict[str, list[str]], stream: bool) -> Any:
        self.done.append(("get", url, *params["names"]))

        def iter_content(size: int) -> Any:
            yield from self.chunks
            if self.fails:
                raise self.fails

        return SimpleNamespace(iter_content=iter_content)

    def _raise_for_status(self, answer: Any) -> None: ...

    def load(self, data: Any) -> list[Any]:
        if self.fails:
            raise self.fails
        return [SimpleNamespace(tags=[data.read().decode()], id="1"), SimpleNamespace(tags=[], id="sha256:2")]

    def push(self, repository: str, **words: Any) -> list[dict[str, str]]:
        return self.events

    def remove(self, name: str, noprune: bool) -> None:
        self.done.append(("remove", name))


def test_several_images_are_saved_as_one_file(tmp_path: Path) -> None:
    client = Client(chunks=[b"ta", b"r"])
    image_store.save(client, ["a:1", "b:1"], tmp_path / "x.tar")  # type: ignore[arg-type]  # a fake
    assert (tmp_path / "x.tar").read_bytes() == b"tar"
    assert client.done == [("get", "/images/get", "a:1", "b:1")]


def test_a_save_that_is_cut_off_leaves_no_file_and_not_half_of_one_over_a_good_one(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"good")
    client = Client(chunks=[b"ta"], fails=requests.ConnectionError("reset"))
    with pytest.raises(EngineUnavailable):
        image_store.save(client, ["a:1"], tmp_path / "x.tar")  # type: ignore[arg-type]  # a fake
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.tar", b"good")]


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot write .*: no such file or directory"):
        image_store.save(Client(), ["a:1"], tmp_path / "absent" / "x.tar")  # type: ignore[arg-type]  # a fake


def test_a_load_says_what_the_engine_has_now(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"a:1")
    assert image_store.load(Client(), tmp_path / "x.tar") == ["a:1", "sha256:2"]  # type: ignore[arg-type]  # a fake


def test_a_file_that_holds_no_images_is_told_and_blames_not_the_engine(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"junk")
    with pytest.raises(HostError, match=r"x.tar holds no images: unexpected EOF") as caught:
        image_store.load(Client(fails=docker.errors.ImageLoadError("unexpected EOF")), tmp_path / "x.tar")  # type: ignore[arg-type]  # a fake
    assert not isinstance(caught.value, EngineUnavailable)


@pytest.mark.parametrize("events", [[{"status": "Pushed", "id": "1"}], [{"error": "denied"}]])
def test_a_push_leaves_no_name_on_the_engine_whether_it_goes_well_or_not(events: list[dict[str, str]]) -> None:
    client, said = Client(events=events), list[str]()
    if "error" in events[0]:
        with pytest.raises(HostError, match=r"reg/x did not take the image: denied") as caught:
            image_store.push(client, "a:1", "reg/x", said.append)  # type: ignore[arg-type]  # a fake
        assert caught.value.hint == "docker login reg"
    else:
        assert image_store.push(client, "a:1", "reg/x", said.append) == "reg/x:1"  # type: ignore[arg-type]  # a fake
        assert said == ["1 Pushed"]
    assert client.done == [("tag", "reg/x:1"), ("remove", "reg/x:1")]


def test_a_registry_that_is_not_there_asks_for_no_login() -> None:
    with pytest.raises(HostError, match="connection refused") as caught:
        image_store.push(Client(events=[{"error": "dial tcp: connection refused"}]), "a:1", "reg:5000/x", print)  # type: ignore[arg-type]  # a fake
    assert caught.value.hint == "curl https://reg:5000/v2/ shows whether a registry is there"


def test_an_image_that_is_not_there_has_no_size() -> None:
    assert image_store.size(Client(), "a:1") == 90  # type: ignore[arg-type]  # a fake
    assert image_store.size(Client(fails=docker.errors.ImageNotFound("no")), "a:1") is None  # type: ignore[arg-type]  # a fake


class Stock:
    """An engine's images and the containers that use them, as docker-py's low-level calls tell of them."""

    def __init__(self, *images: dict[str, Any], used: tuple[str, ...] = (), refuses: int = 0) -> None:
        self.api = self
        self.kept, self.used, self.refuses = list(images), used, refuses

    def containers(self, all: bool) -> list[dict[str, str]]:
        return [{"ImageID": one} for one in self.used] if all else []

    def images(self, filters: dict[str, str]) -> list[dict[str, Any]]:
        return [one for one in self.kept if filters["label"] in (one["Labels"] or {})]

    def remove_image(self, name: str) -> None:
        if self.refuses:
            raise docker.errors.APIError("no", SimpleNamespace(status_code=self.refuses, reason="", url=""))  # type: ignore[arg-type]  # a fake
        found = [one for one in self.kept if name == one["Id"] or name in one["RepoTags"]]
        if not found:
            raise docker.errors.ImageNotFound("no")
        self.kept.remove(found[0])


def image(number: int, *names: str, **labels: str) -> dict[str, Any]:
    return {
        "Id": f"sha256:{number}",
        "RepoTags": list(names),
        "Labels": {f"mbridge.{key}": value for key, value in labels.items()},
        "Size": 1,
    }


NOW = ("mbridge-bridge:2", "mbridge-agent:2")


def test_old_are_images_of_ours_that_are_not_current_not_in_use_and_not_the_users() -> None:
    stock = Stock(
        image(1, "mbridge-bridge:2", image="bridge"),
        image(2, "mbridge-bridge:1", image="bridge"),
        image(3, "mbridge-agent:1", image="agent"),
        image(4, "<none>:<none>", image="agent"),
        image(5, stage="mbridge-bridge:2"),
        image(6, stage="mbridge-bridge:1"),
        image(7, "registry.example/team/mbridge-agent:1", image="agent"),
        image(8, "mbridge-agent:1", "mine:1", image="agent"),
        image(9, "mbridge-agent:1", other="x"),
        used=("sha256:3",),
    )
    old = image_store.superseded(stock, NOW)  # type: ignore[arg-type]  # a fake
    assert [one.what for one in old] == ["mbridge-bridge:1", "agent, replaced by a later build", "stage of mbridge-bridge:1"]
    assert all(image_store.remove(stock, one) for one in old)  # type: ignore[arg-type]  # a fake
    assert [one["Id"][-1] for one in stock.kept] == ["1", "3", "5", "7", "8", "9"]
    assert image_store.remove(stock, old[0]), "someone was quicker"  # type: ignore[arg-type]  # a fake


def test_what_the_engine_keeps_is_no_fault_and_what_it_refuses_is_told() -> None:
    old = image_store.Old("sha256:1", ("mbridge-agent:1",), "mbridge-agent:1", 1)
    assert not image_store.remove(Stock(refuses=409), old)  # type: ignore[arg-type]  # a fake
    with pytest.raises(HostError, match="the engine refused"):
        image_store.remove(Stock(refuses=500), old)  # type: ignore[arg-type]  # a fake
