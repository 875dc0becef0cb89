"""An atlas goes to the hub: the hub's own client against a hub on the loopback, in processes of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hub import Hub, serving
from tests.hub_uploads import SMALLEST_LFS_FILE, Account
from tests.processes import REPO

ACCOUNTS = {
    "hf_ann": Account("ann", ("lab",)),
    "hf_reads": Account("ann", role="read"),
}
PUSH = """
import sys
from pathlib import Path
from lape_ds.atlas.push import check_push, push_atlas
from lape_ds.errors import UserError
try:
    check_push(sys.argv[1], private=sys.argv[3] == "private")
    print(push_atlas(Path(sys.argv[2]), sys.argv[1], private=sys.argv[3] == "private"))
except UserError as error:
    print(f"refused: {error}")
"""


class Pushing(NamedTuple):
    hub: Hub
    work: Path

    @property
    def folder(self) -> Path:
        return self.work / "atlas"

    def push(self, repository: str, *, visibility: str = "public", **environment: str) -> str:
        """What the process printed, one line."""
        done = subprocess.run(
            [sys.executable, "-c", PUSH, repository, str(self.folder), visibility],
            env=self.hub.environment(self.work / "home", **environment),
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1
        return done.stdout.rstrip("\n")

    def uploaded(self, repository: str) -> dict[str, bytes]:
        return contents(self.work / "hub" / "models" / repository)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".gitattributes"
    }


@pytest.fixture
def pushing(tmp_path: Path) -> Iterator[Pushing]:
    (tmp_path / "hub" / "models").mkdir(parents=True)
    folder = tmp_path / "atlas"
    (folder / "counts").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage:\n- mt\n- 'no'\n---\n# An atlas\n")
    (folder / "languages.json").write_text("{}\n")
    for name in ("neurons", "counts/mlt_Latn", "counts/kat_Geor"):
        (folder / f"{name}.safetensors").write_bytes(name.encode() * SMALLEST_LFS_FILE)
    with serving(tmp_path / "hub", accounts=ACCOUNTS) as hub:
        yield Pushing(hub, tmp_path)


def test_the_folder_is_there(pushing: Pushing) -> None:
    address = pushing.push("ann/neurons", visibility="private", HF_TOKEN="hf_ann")
    assert address == f"{pushing.hub.url}/ann/neurons"
    assert pushing.uploaded("ann/neurons") == contents(pushing.folder)
    assert pushing.hub.uploads.private == {"ann/neurons"}
    assert pushing.hub.uploads.commits == {"ann/neurons": ["Upload the atlas"]}
    assert len(pushing.hub.uploads.objects) == 3, "large files go by LFS"


def test_a_later_atlas_takes_its_place(pushing: Pushing) -> None:
    pushing.push("lab/neurons", HF_TOKEN="hf_ann")
    notes = pushing.work / "hub" / "models" / "lab" / "neurons" / "NOTES.md"
    notes.write_text("by hand")
    (pushing.folder / "counts" / "kat_Geor.safetensors").unlink()
    (pushing.folder / "languages.json").write_text('{"languages": 1}\n')
    num_asked = len(pushing.hub.asked)
    told = pushing.push("lab/neurons", visibility="private", HF_TOKEN="hf_ann")
    assert told.startswith("refused: --push lab/neurons: --private, and the repository is public;")
    pushing.push("lab/neurons", HF_TOKEN="hf_ann")
    assert pushing.uploaded("lab/neurons") == contents(pushing.folder) | {"NOTES.md": b"by hand"}
    assert not any(line.startswith("PUT") for line in pushing.hub.asked[num_asked:]), "sent again"
    assert pushing.hub.uploads.private == set()
    published = pushing.uploaded("lab/neurons")
    shutil.rmtree(pushing.folder / "counts")
    pushing.push("lab/neurons", HF_TOKEN="hf_ann")
    assert pushing.uploaded("lab/neurons") == published, "counts that were left out are gone"


def test_another_repository_is_left(pushing: Pushing) -> None:
    folder = pushing.work / "hub" / "models" / "ann" / "llama"
    (folder / "counts").mkdir(parents=True)
    (folder / "README.md").write_text("my model")
    (folder / "counts" / "mine.safetensors").write_text("mine")
    before = pushing.uploaded("ann/llama")
    told = pushing.push("ann/llama", HF_TOKEN="hf_ann")
    assert told.startswith("refused: --push ann/llama: the repository holds something else than an atlas")
    assert pushing.uploaded("ann/llama") == before
    assert pushing.hub.uploads.commits == {}


@pytest.mark.parametrize(
    ("repository", "environment", "expected"),
    [
        ("ann/neurons", {}, "not logged in to the hub; log in with a token that may write (`hf auth login`"),
        ("ann/neurons", {"HF_TOKEN": "hf_ann", "HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it"),
        ("ann/neurons", {"HF_TOKEN": "hf_stranger"}, "the hub refused (Invalid user token."),
        ("ann/neurons", {"HF_TOKEN": "hf_reads"}, "the token of ann only reads; log in with"),
        ("bob/neurons", {"HF_TOKEN": "hf_ann"}, "ann has no rights in bob; allowed: ann/…, lab/…"),
        ("neurons", {"HF_TOKEN": "hf_ann"}, "not the name of a repository; allowed: USER/NAME"),
    ],
)
def test_refusals(pushing: Pushing, repository: str, environment: dict[str, str], expected: str) -> None:
    told = pushing.push(repository, **environment)
    assert told.startswith(f"refused: --push {repository}: ")
    assert expected in told
    assert not any(line.startswith(("POST", "PUT")) for line in pushing.hub.asked), "something was written"


def test_rights_that_end_in_the_meantime(pushing: Pushing) -> None:
    """What whoami allows the repository may still refuse: its own rules are asked only by writing."""
    pushing.push("ann/neurons", HF_TOKEN="hf_ann")
    code = PUSH.replace('check_push(sys.argv[1], private=sys.argv[3] == "private")', "")
    done = subprocess.run(
        [sys.executable, "-c", code, "ann/neurons", str(pushing.folder), "public"],
        env=pushing.hub.environment(pushing.work / "home", HF_TOKEN="hf_reads"),
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "refused: --push ann/neurons: the hub refused (" in done.stdout, done.stderr
    assert "the token needs the right to write there" in done.stdout


def test_a_card_that_the_hub_does_not_take(pushing: Pushing) -> None:
    (pushing.folder / "README.md").write_text("---\nlanguage: [no]\n---\n")  # YAML's false
    told = pushing.push("ann/neurons", HF_TOKEN="hf_ann")
    assert told.startswith("refused: --push ann/neurons: the hub refused (Invalid metadata in README.md.")
    assert pushing.uploaded("ann/neurons") == {}
