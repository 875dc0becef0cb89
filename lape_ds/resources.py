"""Files shipped beside the code: `recipes/`, `eval/` and `launch/`, in a wheel or in a checkout.

Before every room; recipes and evaluation suites are found through it.
"""

from __future__ import annotations

from pathlib import Path

from lape_ds.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = ("recipes", "eval", "launch")


def _candidates(relative: str) -> list[Path]:
    """Where a shipped file may lie: in a wheel under lape_ds/assets, in a checkout beside lape_ds."""
    if Path(relative).is_absolute() or Path(relative).parts[:1] not in [(folder,) for folder in _FOLDERS]:
        return []
    return [root / relative for root in (_PACKAGE / "assets", _PACKAGE.parent)]


def has_asset(relative: str) -> bool:
    """Whether such a file or folder is shipped."""
    return any(path.exists() for path in _candidates(relative))


def is_installed(path: Path) -> bool:
    """Whether a file is part of an installed lape-ds, and so not the user's to change."""
    return path.resolve().is_relative_to(_PACKAGE / "assets")


def asset(relative: str) -> Path:
    """The place of a shipped file or folder.

    Args:
        relative: As in a checkout, e.g. `recipes/quickstart.yaml` or `eval/suites`.

    Raises:
        UserError: Nothing of this name is shipped.
    """
    for path in _candidates(relative):
        if path.exists():
            return path
    raise UserError(f"{relative} is not shipped with lape-ds; it has {', '.join(f'{f}/' for f in _FOLDERS)}")
