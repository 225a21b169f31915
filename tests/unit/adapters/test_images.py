"""Building our images, as far as it goes without an engine: what a build of the same name leaves of the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.adapters import images


class Builder:
    """An engine whose build makes an image and the stage it is built in, under new ids."""

    def __init__(self, cached: bool = False) -> None:
        self.api = self
        self.stock: list[dict[str, Any]] = []
        self.builds, self.cached = 0, cached

    def version(self) -> dict[str, str]:
        return {"Arch": "amd64"}

    def images(self, name: str | None = None, filters: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        if name is not None:
            return [one for one in self.stock if name in one["names"]]
        assert filters is not None
        if filters.get("dangling"):
            return [one for one in self.stock if not one["names"]]
        return [one for one in self.stock if f"mbridge.stage={one.get('stage')}" == filters["label"]]

    def build(self, *, tag: str, labels: dict[str, str], buildargs: dict[str, str], **_: Any) -> list[dict[str, str]]:
        if not (self.cached and self.builds):
            self.builds += 1
            for one in self.stock:
                one["names"] = [name for name in one["names"] if name != tag]
            self.stock.append({"Id": f"stage {self.builds}", "names": [], "stage": buildargs["IMAGE"], "Created": self.builds})
            self.stock.append({"Id": f"image {self.builds}", "names": [tag], "Created": self.builds})
        return [{"stream": "Step 1/1 : FROM x"}]

    def remove_image(self, one: str) -> None:
        self.stock = [image for image in self.stock if image["Id"] != one]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels: list[Path] = []
    monkeypatch.setattr(images, "_wheels", lambda *_: wheels)
    monkeypatch.setattr(images, "_has", lambda *_: True)


@pytest.mark.parametrize("cached", [False, True])
def test_a_build_of_the_same_name_removes_the_image_and_the_stage_that_it_replaces(cached: bool) -> None:
    engine = Builder(cached)
    for _ in range(3):
        images.build(engine, "agent", lambda _: None)  # type: ignore[arg-type]  # a fake
    number = 1 if cached else 3
    assert [one["Id"] for one in engine.stock] == [f"stage {number}", f"image {number}"]


def test_a_build_of_one_image_leaves_those_of_another_alone() -> None:
    engine = Builder()
    for which in images.NAMES:
        images.build(engine, which, lambda _: None)  # type: ignore[arg-type]  # a fake
    assert len(engine.stock) == 4


def test_each_dockerfile_labels_the_stage_that_stays_on_the_engine() -> None:
    for which in images.NAMES:
        (text,) = [data.decode() for name, data in images._sources(which) if name == "Dockerfile"]
        first_stage = text.split("\nFROM ")[1]
        assert "LABEL mbridge.stage=$IMAGE" in first_stage
