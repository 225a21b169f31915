"""What is written down beside the code agrees with it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_page_of_commands_is_what_the_commands_say_of_themselves() -> None:
    spec = importlib.util.spec_from_file_location("make_commands", ROOT / "docs" / "make_commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "commands.md").read_text() == module.text() + "\n", "run: .venv/bin/python docs/make_commands.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name in ("architecture.md", "CONTRIBUTING.md", "README.md")], ids=lambda p: p.name
)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = set(
        re.findall(
            r"`((?:bridge|cli|agent|sidecar|engine|adapters|protocol|model|layer|images|tests)/[\w/.-]+\.(?:py|c|yaml))`", page.read_text()
        )
    )
    assert named or page.name != "architecture.md"
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "bridge" / name).exists(), name


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9_.-]+)==([^\s;\\]+)", text.lower().replace("_", "-"), re.MULTILINE))


@pytest.mark.parametrize("which", ["agent", "bridge"])
def test_images_and_installation_hold_the_same_versions(which: str) -> None:
    locked = pins((ROOT / "requirements-dev.lock").read_text())
    image = pins((ROOT / "images" / which / "requirements.txt").read_text())
    assert image
    assert image == {name: locked[name] for name in image}


def test_both_lock_files_hold_the_same_versions() -> None:
    small, large = (pins((ROOT / name).read_text()) for name in ("requirements.lock", "requirements-dev.lock"))
    assert small
    assert small.items() <= large.items()
