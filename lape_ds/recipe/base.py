"""What every section of a recipe is made from.

Before the sections, so that these can stand in several files.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

NAME = "[A-Za-z0-9][A-Za-z0-9._+-]*"  # what may name a file or a folder


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
