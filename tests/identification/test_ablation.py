"""Ablation, on a tiny model in which one neuron matters to Georgian and, by construction, to no other language at all.

Its tokens are bytes; only Georgian text has the byte 0xE1. That token's embedding alone has a first coordinate, which nothing
in the model writes to, and one neuron reads nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lape_ds import cli
from lape_ds.corpora.prepare import prepare_corpora
from lape_ds.corpora.splitting import NUM_BUCKETS
from lape_ds.distributed.run_lock import take_lock
from lape_ds.errors import UserError
from lape_ds.identification import ablation
from lape_ds.identification.ablation import Ablation, ablate
from lape_ds.model.loading import fingerprint, load_model, load_tokenizer
from lape_ds.neurons.counts import Counts, CountSettings
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import Recipe, load_recipe
from lape_ds.training import texts
from lape_ds.training.texts import heldout_part
from tests.conftest import byte_tokenizer

CODES = ["kat_Geor", "eng_Latn", "mlt_Latn"]
PLANTED = (1, 7)
NEURONS = {"kat_Geor": [PLANTED], "eng_Latn": [(0, 3), (2, 1)], "mlt_Latn": []}
MOST_ACTIVE = {"kat_Geor": 11, "eng_Latn": 5}  # index in every layer
LAYERS, SIZE = 3, 23
ENOUGH = 22_500  # tokens that are read for 1500 held-out ones: 1.5 x 1500 / 0.1

RECIPE = """
name: planted
output_dir: {output}
languages: {{target: eng, identify: [kat, eng, mlt]}}
model: {{path: {model}, dtype: float32}}
corpus: {{source: {{kind: cldr, records: 200}}, heldout_share: 0.1, cache_dir: {model}/../corpus}}
train:
  block_length: 48
  tokens: 5000
  heldout: {{tokens_per_language: 1500, tokens_per_batch: 1024}}
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "model"
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    plant(model, token=tokenizer("ა").input_ids[0])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def plant(model: LlamaForCausalLM, token: int) -> None:
    embeddings = model.get_parameter("model.embed_tokens.weight")
    embeddings[:, 0] = 0
    embeddings[token, 0] = 2
    for number in range(LAYERS):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.get_parameter(f"model.layers.{number}.{name}.weight")[0] = 0  # nothing else writes there
    layer, index = PLANTED
    for name in ("gate_proj", "up_proj"):
        weight = model.get_parameter(f"model.layers.{layer}.mlp.{name}.weight")
        weight[index] = 0
        weight[index, 0] = 3


def write_recipe(
    folder: Path, model_folder: Path, neurons: dict[str, list[tuple[int, int]]] = NEURONS
) -> Path:
    """A recipe whose neuron set and counts are there."""
    path = folder / "planted.yaml"
    path.write_text(RECIPE.format(output=folder / "out", model=model_folder), encoding="utf-8")
    identified, weights = folder / "out" / "identify", fingerprint(model_folder)
    NeuronSet(
        {code: torch.tensor(pairs, dtype=torch.int32).view(-1, 2) for code, pairs in neurons.items()},
        LAYERS,
        SIZE,
        "planted",
        weights,
        "lape",
        {},
    ).save(identified / "neurons.safetensors")
    for code, index in MOST_ACTIVE.items():
        active = torch.zeros(NUM_BUCKETS, LAYERS, SIZE, dtype=torch.int32)
        active[:, :, index] = 9
        settings = CountSettings(code, "planted", weights, 48, "float32")
        Counts(active, torch.full((NUM_BUCKETS,), 10), settings, ()).save(
            identified / "counts" / f"{code}.safetensors"
        )
    return path


def make_recipe(folder: Path, model_folder: Path, *overrides: str) -> Recipe:
    folder.mkdir(exist_ok=True)
    return load_recipe(str(write_recipe(folder, model_folder)), list(overrides))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Recipe, Ablation]:
    recipe = make_recipe(tmp_path_factory.mktemp("measured"), model_folder)
    return recipe, ablate(recipe, num_random=2)


def naive_bits(recipe: Recipe, model_folder: Path, code: str, off: list[tuple[int, int]]) -> float:
    """Bits per byte with another copy of the model, window by window, from its own logits and a softmax in float64."""
    model = deepcopy(load_model(model_folder, dtype="float32", attn_implementation="eager"))
    for layer, index in off:
        with torch.no_grad():
            model.get_parameter(f"model.layers.{layer}.mlp.down_proj.weight")[:, index] = 0
    documents = heldout_part(
        recipe,
        prepare_corpora(
            recipe, load_tokenizer(model_folder), [code], train_tokens={code: ENOUGH}, or_all=True
        )[code],
    ).documents
    nats, length = 0.0, recipe.train.block_length
    for document in documents:
        ids = torch.cat([torch.tensor([1]), document.token_ids])  # BOS
        for start in range(0, len(ids) - 1, length):
            stop = min(start + length, len(ids) - 1)
            window = ids[max(0, stop - length) : stop]
            with torch.no_grad():
                output: Any = model(input_ids=window[None])
            log_probs = output.logits[0].double().log_softmax(-1)[-(stop - start) :]
            nats -= float(log_probs[range(stop - start), ids[start + 1 : stop + 1]].sum())
    return nats / torch.log(torch.tensor(2.0)).item() / sum(document.num_bytes for document in documents)


def rows(found: Ablation) -> dict[str, dict[str, float]]:
    return {
        row.ablated.name: {code: found.change(row, code) for code in found.languages} for row in found.rows
    }


def test_the_planted_neuron_matters_to_its_language_alone(
    measured: tuple[Recipe, Ablation], model_folder: Path
) -> None:
    recipe, found = measured
    changes = rows(found)["identified-kat_Geor"]
    assert changes["eng_Latn"] == changes["mlt_Latn"] == 0.0  # to the last bit
    base = naive_bits(recipe, model_folder, "kat_Geor", [])
    off = naive_bits(recipe, model_folder, "kat_Geor", [PLANTED])
    assert found.base_bits("kat_Geor") == pytest.approx(base, rel=1e-5)
    assert changes["kat_Geor"] == pytest.approx(off - base, rel=1e-3)
    assert abs(changes["kat_Geor"]) > 0.01


def test_every_row_is_what_a_naive_measurement_gives(
    measured: tuple[Recipe, Ablation], model_folder: Path
) -> None:
    recipe, found = measured
    base = {code: naive_bits(recipe, model_folder, code, []) for code in CODES}
    for row in found.rows:
        off = [(int(layer), int(index)) for layer, index in row.ablated.neurons]
        for code in ("eng_Latn", "mlt_Latn"):
            expected = naive_bits(recipe, model_folder, code, off) - base[code]
            assert found.change(row, code) == pytest.approx(expected, abs=2e-5)


def test_the_sets(measured: tuple[Recipe, Ablation]) -> None:
    """As many in every layer; random ones outside the language's own, no two alike; the most active by the counts."""
    _, found = measured
    assert [row.ablated.name for row in found.rows] == [
        f"{kind}-{code}{seed}"
        for code in ("kat_Geor", "eng_Latn")
        for kind, seed in (("identified", ""), ("random", "-0"), ("random", "-1"), ("most_active", ""))
    ]
    assert found.languages == tuple(CODES)
    assert found.row_languages == ("kat_Geor", "eng_Latn")
    sets = {row.ablated.name: [tuple(pair) for pair in row.ablated.neurons.tolist()] for row in found.rows}
    for code in found.row_languages:
        assert sets[f"identified-{code}"] == NEURONS[code]
        layers = [layer for layer, _ in NEURONS[code]]
        assert sets[f"most_active-{code}"] == [(layer, MOST_ACTIVE[code]) for layer in layers]
        for seed in (0, 1):
            drawn = sets[f"random-{code}-{seed}"]
            assert [layer for layer, _ in drawn] == layers
            assert not set(drawn) & set(NEURONS[code])
    assert sets["random-eng_Latn-0"] != sets["random-eng_Latn-1"]


def counted_calls(
    monkeypatch: pytest.MonkeyPatch, *, stop_after: int | None = None
) -> tuple[list[int], Callable[..., Tensor]]:
    """Counts measurements; the one after `stop_after` is interrupted."""
    calls: list[int] = []
    score = ablation.score_documents

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(1)
        return score(*args, **kwargs)

    monkeypatch.setattr(ablation, "score_documents", counting)
    return calls, counting


def equal(one: Ablation, other: Ablation) -> bool:
    pairs = [
        (one.base, other.base),
        *zip((r.nats for r in one.rows), (r.nats for r in other.rows), strict=True),
    ]
    return all(torch.equal(ours[code], theirs[code]) for ours, theirs in pairs for code in CODES)


def test_stopped_anywhere_it_goes_on(
    tmp_path: Path, model_folder: Path, measured: tuple[Recipe, Ablation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """27 measurements; stopped in a row, that row is measured again, finished ones are not; the numbers are the same."""
    recipe = make_recipe(tmp_path, model_folder)
    with monkeypatch.context() as patch:
        counted_calls(patch, stop_after=10)
        with pytest.raises(KeyboardInterrupt):
            ablate(recipe, num_random=2)
    there = sorted(path.name for path in (recipe.output_dir / "ablation" / "rows").iterdir())
    assert there == [f"{name}.safetensors" for name in ("base", "identified-kat_Geor", "random-kat_Geor-0")]
    with monkeypatch.context() as patch:
        calls, _ = counted_calls(patch)
        resumed = ablate(recipe, num_random=2)
    assert len(calls) == 27 - 9
    assert equal(resumed, measured[1])
    monkeypatch.setattr(ablation, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert equal(ablate(recipe, num_random=2), resumed)


def test_two_jobs_do_not_measure_into_one_folder(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second would write over rows of the first; it is refused before it loads a model or writes a file."""
    recipe = make_recipe(tmp_path, model_folder)
    monkeypatch.setattr(ablation, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    folder = recipe.output_dir / "ablation"
    with (
        take_lock(folder, instead="leave"),
        pytest.raises(UserError, match=f"another process is at work in {folder} .* or name another folder"),
    ):
        ablate(recipe)
    assert not folder.exists()


def test_a_control_or_a_language_more_costs_only_itself(
    tmp_path: Path, model_folder: Path, measured: tuple[Recipe, Ablation], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path, model_folder)
    ablate(recipe, languages=["ka", "mt"], num_random=1)  # base and three sets, two languages
    calls, _ = counted_calls(monkeypatch)
    found = ablate(recipe, num_random=1)
    # One column more in the four rows, and English's three of its own.
    assert len(calls) == 4 * 1 + 3 * 3
    calls.clear()
    assert equal(ablate(recipe, num_random=2), measured[1])
    assert len(calls) == 2 * 3
    assert found.languages == tuple(CODES)


def test_languages_that_are_left_out_stay_in_the_files(
    tmp_path: Path,
    model_folder: Path,
    measured: tuple[Recipe, Ablation],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = make_recipe(tmp_path, model_folder)
    ablate(recipe, languages=["ka", "mt"], num_random=2)
    ablate(recipe, languages=["ka", "en"], num_random=2)
    calls, _ = counted_calls(monkeypatch)
    assert equal(ablate(recipe, num_random=2), measured[1])
    assert len(calls) == 4, "Maltese in English's rows alone was not there"
    assert "measured anew" not in capsys.readouterr().out
    monkeypatch.setattr(ablation, "_device_name", lambda: "another GPU")
    ablate(recipe, num_random=2)
    assert len(calls) == 4 + 27
    assert "9 of 9 rows in" in (told := capsys.readouterr().out)
    assert "are measured anew: device cpu there, another GPU now" in told


def test_no_more_text_is_read_than_is_measured(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """English is the target and trains on all it has: hours of packing that an ablation has no use for."""
    recipe = make_recipe(tmp_path, model_folder, "train.tokens=all")
    asked: dict[str, Any] = {}
    original = texts.prepare_corpora

    def prepare(*arguments: Any, train_tokens: Any, **more: Any) -> Any:
        asked.update(train_tokens)
        return original(*arguments, train_tokens=train_tokens, **more)

    monkeypatch.setattr(texts, "prepare_corpora", prepare)
    ablate(recipe, languages=["ka", "en"], num_random=1)
    assert asked == {"kat_Geor": ENOUGH, "eng_Latn": ENOUGH}


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        ((), {"tokens_per_language": 900}, "train.heldout.tokens_per_language is 900 now, 1500 there"),
        (("train.block_length=32",), {}, "train.block_length is 32 now, 48 there"),
        (("model.dtype=bfloat16",), {}, "model.dtype is bfloat16 now, float32 there"),
        (("corpus.heldout_share=0.2",), {}, "corpus.heldout_share is 0.2 now, 0.1 there"),
    ],
)
def test_unlike_settings_are_refused(
    measured: tuple[Recipe, Ablation], overrides: tuple[str, ...], settings: dict[str, Any], message: str
) -> None:
    folder = measured[0].output_dir
    before = {path: path.read_bytes() for path in (folder / "ablation").rglob("*.safetensors")}
    recipe = load_recipe(str(folder.parent / "planted.yaml"), list(overrides))
    with pytest.raises(UserError, match=message):
        ablate(recipe, num_random=2, **settings)
    assert {path: path.read_bytes() for path in (folder / "ablation").rglob("*.safetensors")} == before


def test_rows_of_other_neurons_are_measured_anew(
    tmp_path: Path, model_folder: Path, measured: tuple[Recipe, Ablation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Identified with other knobs: English has other neurons, as many; nothing of the old ones is left in its row."""
    recipe = make_recipe(tmp_path, model_folder)
    before = {row.ablated.name: row.ablated.fingerprint for row in ablate(recipe, num_random=1).rows}
    write_recipe(tmp_path, model_folder, NEURONS | {"eng_Latn": [(0, 8), (2, 9)]})
    calls, _ = counted_calls(monkeypatch)
    found = ablate(recipe, num_random=1)
    changed = [row.ablated.name for row in found.rows if before[row.ablated.name] != row.ablated.fingerprint]
    assert "identified-eng_Latn" in changed
    assert len(calls) == len(changed) * 3, "the most active are the same as before, and so is all of Georgian"
    assert set(changed) <= {"identified-eng_Latn", "random-eng_Latn-0"}
    fresh = make_recipe(tmp_path / "fresh", model_folder)
    write_recipe(tmp_path / "fresh", model_folder, NEURONS | {"eng_Latn": [(0, 8), (2, 9)]})
    assert equal(found, ablate(fresh, num_random=1))


def test_rows_of_another_model_are_measured_anew(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model was made again under its name: nothing of the old one is mixed in."""
    recipe = make_recipe(tmp_path, model_folder)
    ablate(recipe, num_random=1)
    calls, _ = counted_calls(monkeypatch)
    neurons = NeuronSet.load(recipe.identify_dir / "neurons.safetensors")
    replace(neurons, model_fingerprint="").save(recipe.identify_dir / "neurons.safetensors")
    monkeypatch.setattr(ablation, "fingerprint", lambda folder: "another")
    monkeypatch.setattr(
        ablation, "activation_probabilities", lambda recipe, codes, weights: torch.rand(LAYERS, SIZE)
    )
    ablate(recipe, num_random=1)
    assert len(calls) == 7 * 3


def test_a_damaged_row_is_told(tmp_path: Path, model_folder: Path) -> None:
    recipe = make_recipe(tmp_path, model_folder)
    ablate(recipe, languages=["ka", "en"], num_random=1)
    path = recipe.output_dir / "ablation" / "rows" / "base.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"base.safetensors is not a readable"):
        ablate(recipe, languages=["ka", "en"], num_random=1)


@pytest.mark.parametrize(
    ("neurons", "languages", "message"),
    [
        (NEURONS, ["kat"], "kat_Geor has no others to compare with; name at least two languages"),
        (NEURONS, ["kat", "deu"], "the neuron set has no language deu_Latn"),
        ({code: [] for code in CODES}, [], "none of the languages has a neuron; take wider knobs"),
    ],
)
def test_refused(
    tmp_path: Path,
    model_folder: Path,
    neurons: Any,
    languages: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before all weights are read for their fingerprint, which takes minutes of a large model."""
    monkeypatch.setattr(ablation, "fingerprint", lambda _: pytest.fail("the weights were read"))
    recipe = load_recipe(str(write_recipe(tmp_path, model_folder, neurons)), [])
    with pytest.raises(UserError, match=message):
        ablate(recipe, languages=languages)
    assert not (recipe.output_dir / "ablation").exists()


def test_no_counts(tmp_path: Path, model_folder: Path) -> None:
    recipe = make_recipe(tmp_path, model_folder)
    (recipe.identify_dir / "counts" / "eng_Latn.safetensors").unlink()
    with pytest.raises(UserError, match=r"eng_Latn.safetensors, which is not there: run `lape-ds identify`"):
        ablate(recipe)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["lape-ds", "neurons", "ablate", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_command(
    tmp_path: Path,
    model_folder: Path,
    measured: tuple[Recipe, Ablation],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped: 130 and nothing but rows; again: 0 and everything."""
    path, folder = write_recipe(tmp_path, model_folder), tmp_path / "elsewhere"
    arguments = [str(path), "--random", "1", "--tokens", "1200", "--output", str(folder)]
    with monkeypatch.context() as patch:
        counted_calls(patch, stop_after=4)
        assert run(patch, *arguments) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert not (folder / "ablation.json").exists()
    picture = tmp_path / "ablation.svg"
    assert run(monkeypatch, *arguments, "--picture", str(picture)) == 0
    out = capsys.readouterr().out
    assert "without neurons, so measured only: mlt_Latn" in out
    content = json.loads((folder / "ablation.json").read_text())
    assert content["changes"]["identified"]["kat_Geor"]["eng_Latn"] == 0.0
    assert content["settings"]["model_fingerprint"] == fingerprint(model_folder)
    assert 1200 <= content["languages"]["kat_Geor"]["tokens"] < measured[1].num_tokens["kat_Geor"]
    assert (folder / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in picture.read_text()
    assert not (tmp_path / "out" / "ablation").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--random", "0"], "'--random': Input should be greater than or equal to 1"),
        (["--tokens", "0"], "'--tokens': Input should be greater than or equal to 1"),
        (["--languages", "kat,xyzzy"], "xyzzy"),
        (["--picture", "a.pdf"], "--picture a.pdf: no such kind of picture"),
        (["train.neurons=nowhere.safetensors"], "no such file nowhere.safetensors"),
    ],
)
def test_command_refuses(
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    path = write_recipe(tmp_path, model_folder)
    assert run(monkeypatch, str(path), *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
