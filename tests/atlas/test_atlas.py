"""The whole of `lape-ds atlas` in small: six languages, a random model of two layers; killed, run again, run once more."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open

from lape_ds.atlas.card import write_card
from lape_ds.atlas.folder import write_atlas
from lape_ds.atlas.provenance import commits_read
from lape_ds.atlas.published import published_recipe
from lape_ds.cli_atlas import _check_recipe  # pyright: ignore[reportPrivateUsage]
from lape_ds.distributed.run_lock import take_lock
from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.neurons.counts import Counts
from lape_ds.neurons.families import family
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import load_recipe, to_yaml
from tests.hub import Hub, serving
from tests.hub_uploads import Account
from tests.identification.making import make_model
from tests.processes import REPO

CODES = ["mlt_Latn", "kat_Geor", "eng_Latn", "deu_Latn", "nob_Latn", "srp_Cyrl"]
ABLATED = ["mlt_Latn", "kat_Geor", "eng_Latn"]
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}
RECIPE = """\
name: small-atlas
output_dir: {work}/run
languages: {{target: mt, identify: [mt, ka, en, de, nb, srp_Cyrl]}}
model: {{path: {work}/model, dtype: float32}}
corpus: {{source: {{kind: cldr, records: 150}}, heldout_share: 0.2}}
identify:
  tokens_per_language: 4000
  batch_size: 4
  top_rate: 0.25
  filter_rate: 0.75
  activation_bar_ratio: 0.75
  bootstrap_resamples: 10
train:
  block_length: 64
  heldout: {{tokens_per_language: 500, tokens_per_batch: 512}}
atlas: {{ablate: [mt, ka, en], num_random: 2, license: cc-by-4.0}}
env: {{OUR_TOKEN: hf_not_to_be_told}}
"""
FILES = {
    *("README.md", "neurons.safetensors", "languages.json", "layers.png", "stability.json", "agreement.png"),
    *("overlap-languages.json", "overlap-languages.png", "overlap-families.json", "overlap-families.png"),
    *("ablation.json", "ablation.png", "recipe.yaml", "run.json"),
    *(f"counts/{code}.safetensors" for code in CODES),
}


KNOBS = ["identify.filter_rate=0.95", "identify.activation_bar_ratio=0.95"]  # of which the method has none


class Made(NamedTuple):
    """What one user did, one after the other."""

    work: Path
    killed_with: list[str]  # counts that were there
    atlas_after_kill: bool
    printed: str  # by the run that went on
    counted_before: dict[str, bytes]
    first: dict[str, Any]  # the folder after it
    again: dict[str, Any]  # after one more run, with --push
    pushed: dict[str, bytes]
    hub: Hub

    @property
    def folder(self) -> Path:
        return self.work / "run" / "atlas"

    def json(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, Any]:
    """By relative path; run.json without its date, safetensors as tensors and metadata, whose order is not kept."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}  # noqa: SIM118
                found[name] = (tensors, file.metadata())
        elif path.name == "run.json":
            found[name] = json.loads(path.read_text(encoding="utf-8")) | {"date": None}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def start(work: Path, *arguments: str, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lape_ds.cli", "atlas", str(work / "small.yaml"), *arguments],
        cwd=REPO,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    printed = process.communicate(timeout=200)[0]
    assert process.returncode == 0, printed
    return printed


def kill_while_counting(work: Path, env: dict[str, str]) -> list[str]:
    """SIGKILL to all its processes as soon as a language's counts are there; whose were."""
    process, counts = start(work, env=env), work / "run" / "identify" / "counts"
    deadline = time.monotonic() + 120
    while not (found := sorted(path.stem for path in counts.glob("[!.]*.safetensors"))):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    work = tmp_path_factory.mktemp("atlas")
    make_model(work, codes=CODES, llama=LLAMA, num_records=60)
    (work / "small.yaml").write_text(RECIPE.format(work=work), encoding="utf-8")
    (work / "hub" / "models").mkdir(parents=True)
    with serving(work / "hub", accounts={"hf_ann": Account("ann")}) as hub:
        env = hub.environment(work / "home", OMP_NUM_THREADS="1", COLUMNS="120")
        counts = work / "run" / "identify" / "counts"
        killed_with = kill_while_counting(work, env)
        atlas_after_kill = (work / "run" / "atlas").exists()
        counted_before = {name: (counts / f"{name}.safetensors").read_bytes() for name in killed_with}
        printed = finished(start(work, env=env))
        first = contents(work / "run" / "atlas")
        finished(start(work, "--push", "ann/small", env=env | {"HF_TOKEN": "hf_ann"}))
        again = contents(work / "run" / "atlas")
        pushed = {
            path.relative_to(work / "hub/models/ann/small").as_posix(): path.read_bytes()
            for path in (work / "hub/models/ann/small").rglob("*")
            if path.is_file() and path.name != ".gitattributes"
        }
    return Made(work, killed_with, atlas_after_kill, printed, counted_before, first, again, pushed, hub)


def table(card: str, first_heading: str, last_heading: str) -> list[list[str]]:
    """The cells of the card's table with these headings, without them."""
    lines = card.splitlines()
    begin = next(
        number
        for number, line in enumerate(lines)
        if line.startswith(f"| {first_heading} |") and line.endswith(f"| {last_heading} |")
    )
    rows = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_everything_is_in_the_folder(made: Made) -> None:
    assert set(made.first) == FILES
    assert all(content for content in made.first.values())
    for name, content in made.first.items():
        if name.endswith(".png"):
            assert content.startswith(b"\x89PNG")
    run = made.work / "run"
    identified = contents(run / "identify")
    for name in (name for name in FILES if name.endswith(".safetensors")):
        (tensors, metadata), (theirs, expected) = made.first[name], identified[name]
        assert tensors == theirs
        assert metadata == expected | {"model_id": "model"}
    measured = json.loads((run / "ablation" / "ablation.json").read_text(encoding="utf-8"))
    assert made.json("ablation") == measured | {"model_id": "model"}
    published, own = load_recipe(made.folder / "recipe.yaml"), load_recipe(made.work / "small.yaml")
    assert (published.languages, published.identify) == (own.languages, own.identify)
    assert (published.corpus, published.atlas) == (own.corpus, own.atlas)


def test_goes_on_after_a_kill(made: Made) -> None:
    assert not made.atlas_after_kill
    assert len(made.killed_with) < len(CODES), "it was killed too late"
    for code, counted in made.counted_before.items():
        path = made.work / "run" / "identify" / "counts" / f"{code}.safetensors"
        if Counts.load(path).num_tokens() > 3500:  # it was whole before the kill
            assert path.read_bytes() == counted
    for code in CODES:
        (part,) = Counts.load(made.folder / "counts" / f"{code}.safetensors").parts
        assert part.start == 0
        assert 4000 <= part.num_tokens < 4300, "tokens were counted twice, or not at all"


def test_running_again_changes_nothing(made: Made) -> None:
    assert made.again == made.first


def test_the_front_matter_is_the_hubs(made: Made) -> None:
    card = ModelCard.load(made.folder / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["language"] == ["mt", "ka", "en", "de", "nb", "sr"]
    assert data["library_name"] == "lape-ds"
    assert "language-neurons" in data["tags"]
    assert "base_model" not in data  # a folder here is no model of the hub
    assert "datasets" not in data
    assert str(card) == (made.folder / "README.md").read_text(encoding="utf-8")


def test_the_languages_table_is_that_of_the_files(made: Made) -> None:
    """Every cell, computed here from the neuron set, the counts and stability.json."""
    neurons = NeuronSet.load(made.folder / "neurons.safetensors")
    stability = made.json("stability")["languages"]
    rows = table((made.folder / "README.md").read_text(encoding="utf-8"), "language", "confidence")
    assert [row[1] for row in rows] == CODES
    sets = {code: {tuple(pair) for pair in neurons.neurons(code).tolist()} for code in CODES}
    for name, code, told_family, number, share, own, tokens, agreement, confidence in rows:
        others = set[Any]().union(*(sets[other] for other in CODES if other != code))
        counts = Counts.load(made.folder / "counts" / f"{code}.safetensors")
        assert (name, told_family) == (find_language(code).name, family(code))
        assert number == str(len(sets[code]))
        assert share == f"{100 * len(sets[code]) / 96:.2f} %"
        assert own == str(len(sets[code] - others))
        assert tokens == f"{counts.num_tokens():,}"
        assert neurons.confidence is not None
        sure = neurons.confidence[code].tolist()
        assert confidence == (f"{fmean(sure):.2f}" if sure else "–")
        assert agreement == f"{stability[code]['half_agreement']:.2f}"
    summary = made.json("languages")["summary"]
    assert summary["distinct_neurons"] == len(set().union(*sets.values()))
    assert summary["median_neurons"] == median(len(own) for own in sets.values())
    assert sum(map(len, sets.values())) > 0, "nothing was tested"


def test_the_ablation_table_is_that_of_the_file(made: Made) -> None:
    measured = made.json("ablation")
    rows = table((made.folder / "README.md").read_text(encoding="utf-8"), "language", "most active")
    *languages, overall = rows
    scores = measured["specificity"]
    assert sorted(row[0] for row in languages) == sorted(scores["identified"]["languages"])
    assert set(measured["languages"]) == set(ABLATED)

    def told(one: dict[str, float | None]) -> str:
        half = "" if one["half_width"] is None else f" ± {one['half_width']:.4f}"
        return f"{one['value']:+.4f}{half}"

    for code, base, own, others, *by_kind in languages:
        assert base == f"{measured['languages'][code]['base_bits_per_byte']:.3f}"
        changes = measured["changes"]["identified"][code]
        assert own == f"{changes[code]:+.4f}"
        assert others == f"{fmean(value for other, value in changes.items() if other != code):+.4f}"
        kinds = ("identified", "random", "most_active")
        assert by_kind == [told(scores[kind]["languages"][code]) for kind in kinds]
    assert overall[4:] == [told(scores[kind]["overall"]) for kind in ("identified", "random", "most_active")]


def test_every_other_number_is_in_a_file(made: Made) -> None:
    """Whatever the text says in figures stands in a file: as it is there, or rounded."""
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    text = "\n".join(line for line in card.split("---\n", 2)[2].splitlines() if not line.startswith("|"))
    text = re.sub(
        r"`[^`]*`|\]\([^)]*\)|arXiv [\d.]+|https://\S+|95 %|^- (Versions|This folder):.*",
        "",
        text,
        flags=re.M,
    )
    text = text.split("## How to use it")[0] + text.split("## Texts and licences")[1]
    known = {str(len(ABLATED)), "2", "1"}  # languages and random sets of the recipe; "near 1"
    for name in ("languages", "stability", "overlap-languages", "ablation"):
        for number in numbers_of(made.json(name)):
            known |= {f"{number:,}", f"{number:g}", f"{number:.2f}", f"{number:.3f}", f"{100 * number:.2f}"}
            known |= {f"{number:+.4f}", f"{number:.4f}"}
    date = made.json("run")["date"][:10]
    told = re.findall(r"(?<![\w.-])[+-]?\d(?:[\d,]*\d)?(?:\.\d+)?(?![\w-])", text.replace(date, "", 1))
    assert len(told) > 20
    assert [number for number in told if number not in known] == []


def numbers_of(content: Any) -> list[float]:
    if isinstance(content, dict):
        return [number for value in content.values() for number in numbers_of(value)]
    if isinstance(content, list):
        return [number for value in content for number in numbers_of(value)]
    return [content] if isinstance(content, int | float) and not isinstance(content, bool) else []


def test_the_code_on_the_card_runs(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(made.folder)
    names: dict[str, Any] = {}
    exec(code[0], names)
    assert names["neurons"].dtype == torch.int32
    assert len(names["neurons"]) > 0


def test_nothing_of_the_user_is_published(made: Made) -> None:
    run = made.json("run")
    assert "host" not in run["hardware"]
    assert "command" not in run
    for path in made.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(made.work).encode() not in content, path
            assert b"hf_not_to_be_told" not in content, path
            assert b"OUR_TOKEN" not in content, path


def test_paths_of_a_recipe_are_names(made: Made) -> None:
    (made.work / "kat.txt").write_text("ტექსტი", encoding="utf-8")
    files = {"kind": "files", "path": f"{made.work}/{{iso639_3}}.txt"}
    hub = {"kind": "hub", "dataset": "lab/texts", "column": "text"}
    own = load_recipe(
        made.work / "small.yaml",
        [
            f"corpus.source={json.dumps(hub)}",
            f"corpus.per_language={json.dumps({'ka': files})}",
            "corpus.cache_dir=/home/ann/cache",
            f"train.neurons={made.folder}/neurons.safetensors",
            "model.path=/home/ann/models/base",
            "output_dir=/home/ann/run",
        ],
    )
    text = to_yaml(published_recipe(own))
    assert "/home" not in text
    assert str(made.work) not in text
    assert "path: '{iso639_3}.txt'" in text
    assert "path: base" in text
    assert "dataset: lab/texts" in text


def test_what_is_pushed_is_the_folder(made: Made) -> None:
    assert made.pushed == {
        path.relative_to(made.folder).as_posix(): path.read_bytes()
        for path in made.folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("arguments", "more", "expected"),
    [
        (["--push", "ann/small", "atlas.license=null"], {}, "atlas.license is not set; name the licence"),
        (["--private"], {}, "--private: nothing is pushed; give --push USER/NAME too"),
        (["--push", "ann/small"], {}, "not logged in to the hub"),
        (
            ["identify.method=mean_activation", *KNOBS],
            {},
            "identify.method: mean_activation has no stability",
        ),
        (["identify.part=0/2"], {}, "identify.part: 0/2 counts a part and selects no neurons"),
        (["identify.zero_stage=3"], {}, "the atlas's ablation loads it whole; set 0"),
        ([], {"RANK": "0", "WORLD_SIZE": "2"}, "under srun or torchrun let `lape-ds identify` count"),
    ],
)
def test_refused_before_anything_runs(
    made: Made, arguments: list[str], more: dict[str, str], expected: str
) -> None:
    env = made.hub.environment(made.work / "home", **more)
    process = start(made.work, *arguments, env=env)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 2, told
    assert told.count("\n") == 1
    assert expected in told


def test_a_folder_of_something_else_is_left(made: Made, tmp_path: Path) -> None:
    recipe = load_recipe(made.work / "small.yaml")
    other = recipe.model_copy(update={"output_dir": tmp_path})
    (tmp_path / "identify").symlink_to(recipe.identify_dir)
    (tmp_path / "ablation").symlink_to(recipe.output_dir / "ablation")
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "notes.txt").write_text("mine")
    for write in (
        _check_recipe,
        partial(write_atlas, with_counts=True),
    ):  # the former before hours of counting
        with pytest.raises(UserError, match="holds other things and is left as it is"):
            write(other)
    (tmp_path / "atlas" / "notes.txt").unlink()
    with (
        take_lock(tmp_path / "atlas", instead="leave"),
        pytest.raises(UserError, match=r"another process is at work in .*atlas .* or set another output_dir"),
    ):
        write_atlas(other, with_counts=True)
    folder = write_atlas(other, with_counts=False)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        name for name in FILES if not name.startswith("counts/")
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "counts/" not in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-4.0"


def test_results_of_another_selection_are_refused(made: Made, tmp_path: Path) -> None:
    recipe = load_recipe(made.work / "small.yaml")
    other = recipe.model_copy(update={"output_dir": tmp_path})
    shutil.copytree(recipe.identify_dir, other.identify_dir)
    (tmp_path / "ablation").symlink_to(recipe.output_dir / "ablation")
    path = other.identify_dir / "stability.json"
    stability = json.loads(path.read_text(encoding="utf-8"))
    for wrong in (
        {"method": "family_lape"},
        {"languages": {"mlt_Latn": stability["languages"]["mlt_Latn"]}},
    ):
        path.write_text(json.dumps(stability | wrong), encoding="utf-8")
        with pytest.raises(
            UserError, match=r"stability.json is of another selection than neurons.safetensors"
        ):
            write_atlas(other, with_counts=False)
    with pytest.raises(UserError, match=r"ablation holds output of another recipe: train.block_length is 32"):
        _check_recipe(other.model_copy(update={"train": other.train.model_copy(update={"block_length": 32})}))
    path.unlink()
    with pytest.raises(UserError, match=r"no such file: .*stability.json"):
        write_atlas(other, with_counts=False)


def test_the_card_of_a_hub_model(made: Made, tmp_path: Path) -> None:
    """Model, revision and data sets of the hub are named so that it links them; which texts are whose is told."""
    folder = tmp_path / "atlas"
    shutil.copytree(made.folder, folder)
    assert made.json("run")["commits"] == {code: [] for code in CODES}, "CLDR's text is not of the hub"
    commits = {code: ["a" * 40] for code in CODES} | {"eng_Latn": ["b" * 40, "c" * 40]}
    model = {"hub_id": "meta-llama/Llama-3.1-8B", "revision": "v1"}
    run = made.json("run") | {"model": model, "commits": commits}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    recipe = load_recipe(
        REPO / "recipes" / "atlas-llama-3.1-8b.yaml",
        [f"languages.identify={json.dumps(CODES)}", "atlas.ablate=[]"],
    )
    text = write_card(folder, recipe)
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "meta-llama/Llama-3.1-8B"
    assert data["datasets"] == ["HuggingFaceFW/fineweb-2", "HuggingFaceFW/fineweb"]
    assert data["license"] == "llama3.1"
    assert text.split("---\n", 2)[2].startswith(
        "\n# Language neurons of meta-llama/Llama-3.1-8B: 6 languages\n"
    )
    assert (
        "- The model and its licence: https://huggingface.co/meta-llama/Llama-3.1-8B, revision `v1`;" in text
    )
    english = next(line for line in text.splitlines() if "datasets/HuggingFaceFW/fineweb, " in line)
    assert f", read at commit `{'b' * 40}` and `{'c' * 40}` (ODC" in english
    assert english.endswith("(ODC-By 1.0, and Common Crawl's terms of use): eng_Latn")
    others = next(line for line in text.splitlines() if "datasets/HuggingFaceFW/fineweb-2, " in line)
    assert f", read at commit `{'a' * 40}` (ODC" in others
    assert others.endswith(": mlt_Latn, kat_Geor, deu_Latn, nob_Latn, srp_Cyrl")


def test_a_card_without_a_bootstrap_speaks_of_none(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "atlas"
    shutil.copytree(made.folder, folder)
    stability, languages = made.json("stability") | {"num_resamples": 0}, made.json("languages")
    languages["summary"]["mean_confidence"] = None
    for one in (*stability["languages"].values(), *languages["languages"]):
        one["confidence"] = None
    for name, content in (("stability", stability), ("languages", languages)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    text = write_card(folder, load_recipe(made.folder / "recipe.yaml"))
    assert [len(row) for row in table(text, "language", "agreement")] == [8] * len(CODES)
    told = text.split("## The languages")[1].split("## Do these neurons matter?")[0]
    assert "onfidence" not in told
    assert "resample" not in told
    assert "–" not in told


def test_the_commits_are_those_of_the_counted_text(made: Made, tmp_path: Path) -> None:
    """Text is packed anew when its data set changes: only what was counted is told."""
    recipe = load_recipe(made.work / "small.yaml", [f"corpus.cache_dir={tmp_path}"])
    (part,) = Counts.load(recipe.identify_dir / "counts" / "mlt_Latn.safetensors").parts
    for fingerprint, commit in ((part.corpus_fingerprint, "a" * 40), ("of other text", "b" * 40)):
        path = tmp_path / "mlt_Latn" / fingerprint / "corpus.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"source": {"kind": "hub"}, "commits": [commit]}))
    assert commits_read(recipe) == {code: ["a" * 40] if code == "mlt_Latn" else [] for code in CODES}
