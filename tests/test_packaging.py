import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from lape_ds.errors import UserError
from lape_ds.resources import asset, has_asset

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_carries_recipes_and_eval(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("recipes", "eval", "launch"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                assert f"lape_ds/assets/{path.relative_to(ROOT)}" in names
    assert "lape_ds/cli.py" in names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_wheel_finds_its_recipes_without_a_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "from lape_ds.recipe import load_recipe; import lape_ds\n"
        "print(lape_ds.__file__); print(load_recipe('recipes/quickstart.yaml').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    place, name = done.stdout.splitlines()
    assert place.startswith(str(tmp_path))
    assert name == "quickstart"


def test_assets() -> None:
    assert asset("recipes/quickstart.yaml").is_file()
    assert not has_asset("recipes/none.yaml")
    assert not has_asset("lape_ds/cli.py")
    with pytest.raises(UserError, match="not shipped"):
        asset("recipes/none.yaml")


def test_the_lock_holds_every_dependency_and_no_local_tag() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lock)
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lock}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[<>=~!; ]", text)[0].replace("_", "-").lower() for text in wanted}
    assert names <= pinned
    assert not {name for name in pinned if name.startswith(("nvidia", "cuda", "triton", "lape-ds"))}


def test_makefile_names_what_is_missing_in_one_line(tmp_path: Path) -> None:
    command = ["make", "--no-print-directory", "check-tools", f"PYTHON={tmp_path / 'none'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("error: missing: Python 3.11 or newer")
