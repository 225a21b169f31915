"""The cluster's own kubeconfig, to be changed by a test."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.kube import Cluster, Json


@dataclass
class Kubeconfig:
    """In memory; `write` makes a file of it."""

    value: Json
    folder: Path

    @classmethod
    def of(cls, cluster: Cluster, folder: Path) -> Kubeconfig:
        return cls(json.loads(cluster.kubectl("config", "view", "--raw", "--minify", "-o", "json")), folder)

    @property
    def cluster(self) -> Json:
        return self.value["clusters"][0]["cluster"]  # type: ignore[no-any-return]  # JSON

    @property
    def user(self) -> Json:
        return self.value["users"][0]["user"]  # type: ignore[no-any-return]  # JSON

    def write(self, name: str = "config") -> Path:
        file = self.folder / name
        file.write_text(json.dumps(self.value))
        return file
