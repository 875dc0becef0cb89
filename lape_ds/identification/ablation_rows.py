"""One row of an ablation: what a model with some neurons off makes of every language's held-out text, as a file.

Beside ablation.py, which measures rows. They are files of their own, so that an ablation which was stopped goes on at the row
where it stopped, and a language or a control added later costs only its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lape_ds.neurons.artefact import load_artefact, save_artefact

SCHEMA_VERSION = 1
_KIND = "ablation row"
_COMMAND = "lape-ds neurons ablate RECIPE"

Kind = Literal["identified", "random", "most_active"]
KINDS: tuple[Kind, ...] = ("identified", "random", "most_active")


@dataclass(frozen=True, eq=False)
class AblatedSet:
    """Neurons that are switched off together.

    Attributes:
        kind: "identified": a language's neurons; "random" and "most_active": a control of as many in every layer; "base": none.
        language: Whose neurons they are, or are like; "" of the base.
        neurons: int32 `[n, 2]` of (layer, index), sorted.
        seed: Number of a random set.
    """

    kind: Kind | Literal["base"]
    language: str
    neurons: Tensor
    seed: int | None = None

    @property
    def name(self) -> str:
        """Of its row's file."""
        parts = (self.kind, self.language, "" if self.seed is None else str(self.seed))
        return "-".join(part for part in parts if part)

    @property
    def fingerprint(self) -> str:
        """Of the neurons: 16 hexadecimal digits."""
        return hashlib.sha256(self.neurons.int().contiguous().numpy().tobytes()).hexdigest()[:16]


BASE = AblatedSet("base", "", torch.empty(0, 2, dtype=torch.int32))


@dataclass(frozen=True, eq=False)
class RowFile:
    """Where a row is kept, and what it must have been measured by to be taken for it.

    Attributes:
        path: The file.
        ablated: What is off.
        settings: What every number of an ablation depends on, JSON values.
    """

    path: Path
    ablated: AblatedSet
    settings: Mapping[str, Any]

    def load(self, texts: Mapping[str, str]) -> dict[str, Tensor]:
        """What is there of the row: float64 [documents] in nats by language; nothing of other settings, neurons or texts.

        Args:
            texts: The fingerprint of each language's text.

        Raises:
            UserError: The file is damaged.
        """
        nats, there = self._there()
        return {code: nats[code] for code, text in texts.items() if there.get(code) == text}

    def other_settings(self) -> dict[str, tuple[Any, Any]]:
        """Settings in which the row that is there was measured otherwise: (there, now) by name.

        Raises:
            UserError: The file is damaged.
        """
        if not self.path.exists():
            return {}
        measured = json.loads(self._read()[1]["measured"])
        return {
            name: (measured.get(name), now)
            for name, now in self.settings.items()
            if measured.get(name) != now
        }

    def save(self, nats: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
        """Writes the row, whole or not at all; what is there of other languages, measured likewise, stays in it."""
        kept, kept_texts = self._there()
        metadata = {
            "measured": self._measured(),
            "texts": json.dumps(kept_texts | {code: texts[code] for code in nats}),
        }
        save_artefact(
            self.path, kept | dict(nats), kind=_KIND, schema_version=SCHEMA_VERSION, metadata=metadata
        )

    def _there(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The row that is there, if these settings and neurons are its own: nats and fingerprint of the text by language."""
        if not self.path.exists():
            return {}, {}
        tensors, metadata = self._read()
        if metadata["measured"] != self._measured():
            return {}, {}
        return dict(tensors), json.loads(metadata["texts"])

    def _read(self) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
        return load_artefact(self.path, kind=_KIND, schema_version=SCHEMA_VERSION, command=_COMMAND)

    def _measured(self) -> str:
        return json.dumps({**self.settings, "neurons": self.ablated.fingerprint}, sort_keys=True)
