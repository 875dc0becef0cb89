"""Alignment of a run: hidden states sentence by sentence, planted changes, and files that are read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lape_ds.analysis.alignment.measure import PairValues, before_after, pair_values
from lape_ds.analysis.alignment.numbers import MEASURES, Alignment, ParallelRequest
from lape_ds.analysis.alignment.sentence_states import mean_states
from lape_ds.analysis.analyze import analyze
from lape_ds.analysis.training.results import analysis_dir
from lape_ds.analysis.training.run import AnalyzedRun, open_runs
from lape_ds.corpora.cldr import sample_records
from lape_ds.errors import UserError
from lape_ds.languages import find_language
from tests.analysis.training.made_runs import make_run, read_analysis
from tests.tiny_models import NUM_LAYERS, VOCAB_SIZE, tiny_model

NUM = 24


# Unlike in positions, masks and what stands before the first layer.
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "opt", "bloom", "gpt_neox", "mixtral"])
@torch.no_grad()
def test_states_are_those_of_single_sentences(model_type: str) -> None:
    """One after the other, whole, without padding; a mean over all but the prefix; one sentence is cut."""
    model = tiny_model(model_type)
    generator = torch.Generator().manual_seed(1)
    sentences = [
        torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (5, 9, 1, 12, 7)
    ]
    found = mean_states(model, sentences, prefix=[1], max_length=10, tokens_per_batch=20)
    assert found.shape[:2] == (NUM_LAYERS + 1, 5)
    for place, sentence in enumerate(sentences):
        states = model(torch.tensor([[1, *sentence][:10]]), output_hidden_states=True).hidden_states
        expected = torch.stack([state[0, 1:].mean(0) for state in states])
        torch.testing.assert_close(found[:, place], expected, rtol=1e-4, atol=1e-5)


def test_states_that_are_no_numbers_are_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight").fill_(float("inf"))
    with pytest.raises(UserError, match="NaN or infinite"):
        mean_states(model, [[3, 4]], prefix=[1], max_length=8, tokens_per_batch=20)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_planted_alignment_is_found_and_shuffled_pairs_change_nothing() -> None:
    """Layer 1 becomes the other language's own state, layer 2 goes from one unrelated state to another."""
    own = normal(3, 60, 32, seed=0)
    before, after = normal(3, 60, 32, seed=1), normal(3, 60, 32, seed=2)
    before[0] = after[0]  # the embeddings do not train
    after[1] = own[1] + 0.1 * normal(60, 32, seed=3)
    found = before_after(pair_values(own, before), pair_values(own, after))
    for name in MEASURES:
        measure = found[name]
        assert measure.change[0] == 0
        assert measure.half_width[0] is None
        if (
            "retrieval" in name
        ):  # one sentence that was right by chance before: resamples without it are all alike
            assert measure.after[1] == 1.0
            assert measure.before[1] < 0.1
            continue
        width = measure.half_width[1]
        assert width is not None
        assert measure.change[1] > 5 * width > 0
    assert found["retrieval"].chance_after[1] == 1 / 60
    assert found["cosine"].after[1] == pytest.approx(0.995, abs=0.002)  # 1 / sqrt(1.01)
    for name in (
        "cosine",
        "centred_cosine",
        "cosine_above_unpaired",
        "cka",
    ):  # one sample each: seed chosen once
        width = found[name].half_width[2]
        assert width is not None
        assert abs(found[name].change[2]) < width
        assert abs(found[name].after[2] - found[name].chance_after[2]) < 0.05
    assert found["cka"].mean_after == pytest.approx(np.mean(found["cka"].after[1:]))


def test_an_interval_of_the_mean_over_layers_knows_that_layers_go_together() -> None:
    """Two layers that are copies: the mean over them is as unsure as each."""
    before, after = normal(1, 40, 8, seed=4), normal(1, 40, 8, seed=5)
    own = normal(1, 40, 8, seed=6)
    pair = [pair_values(own.expand(3, -1, -1), other.expand(3, -1, -1)) for other in (before, after)]
    found = before_after(pair[0], pair[1])["cosine"]
    assert found.mean_half_width == pytest.approx(found.half_width[1])


def test_pairs_of_one_sentence_are_drawn_together() -> None:
    """The mean of a pair with itself has that pair's interval, not one narrower by the root of two."""
    values = [pair_values(normal(2, 30, 6, seed=7), normal(2, 30, 6, seed=seed)) for seed in (8, 9)]
    doubled = [
        PairValues(np.mean([one.by_sentence] * 2, axis=0), np.mean([one.chance] * 2, axis=0))
        for one in values
    ]
    alone, together = before_after(*values)["cka"], before_after(*doubled)["cka"]
    assert together.half_width == pytest.approx(alone.half_width)


@pytest.fixture(scope="module")
def run(tiny_recipe: Path) -> AnalyzedRun:
    """Trained: the last layer's attention adds nothing any more."""

    def plant(model: PreTrainedModel) -> None:
        model.get_parameter("model.layers.2.self_attn.o_proj.weight").zero_()

    return open_runs([make_run(tiny_recipe, "aligned", method="full", plant=plant)])[0]


@pytest.fixture(scope="module")
def analysed(run: AnalyzedRun) -> Alignment:
    analyze([run.run_dir], only=["alignment"], parallel=ParallelRequest(num_sentences=NUM))
    (content,) = read_analysis(analysis_dir(run.run_dir), "alignment")
    return Alignment.from_json(content)


def states_by_hand(folder: Path, code: str) -> Tensor:
    """`[layers + 1, sentences, hidden]`, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for record in sample_records(find_language(code), count=NUM, seed=0, first=10**9):
        ids = tokenizer(record.text, add_special_tokens=False)["input_ids"]
        row = torch.tensor([[tokenizer.bos_token_id, *ids][:64]])
        with torch.no_grad():
            states = model(row, output_hidden_states=True).hidden_states
        found.append(torch.stack([state[0, 1:].mean(0) for state in states]))
    return torch.stack(found, dim=1)


def test_a_run_has_the_numbers_of_a_computation_by_hand(run: AnalyzedRun, analysed: Alignment) -> None:
    assert [(pair.language, pair.other) for pair in analysed.pairs] == [("mlt_Latn", "eng_Latn")]
    assert analysed.num_sentences == NUM
    assert [one.path for one in analysed.subject.inputs] == [str(run.base_folder), "model"]
    measures = analysed.pairs[0].measures
    for side, folder in (("before", run.base_folder), ("after", run.run_dir / "model")):
        own, other = (states_by_hand(folder, code).double() for code in ("mlt_Latn", "eng_Latn"))
        for layer in range(4):
            x, y = (one[layer] / one[layer].norm(dim=1, keepdim=True) for one in (own, other))
            cosines = x @ y.T
            right = (cosines.argmax(1) == torch.arange(NUM)).double().mean()
            assert getattr(measures["retrieval_to_other"], side)[layer] == pytest.approx(float(right))
            assert getattr(measures["cosine"], side)[layer] == pytest.approx(
                float(cosines.diagonal().mean()), abs=1e-5
            )
            unpaired = (cosines.sum() - cosines.trace()) / (NUM * (NUM - 1))
            chance = getattr(measures["cosine"], f"chance_{side}")[layer]
            assert chance == pytest.approx(float(unpaired), abs=1e-5)
    assert measures["cka"].change[:3] == (0, 0, 0)  # only the last layer was changed
    assert measures["cka"].change[3] != 0
    assert set(analysed.means) == {"english"}


def test_what_is_written_is_what_is_read(run: AnalyzedRun, analysed: Alignment) -> None:
    folder = analysis_dir(run.run_dir)
    content = json.loads((folder / "alignment.json").read_text(encoding="utf-8"))
    assert analysed.as_json() == {key: content[key] for key in analysed.as_json()}
    rows = parquet.read_table(folder / "alignment.parquet").to_pylist()
    assert len(rows) == len(MEASURES) * 4
    for row in rows:
        pair = next(one for one in content["pairs"] if one["other"] == row["other"])
        assert row["after"] == pair["measures"][row["measure"]]["after"][row["layer"]]
        assert row["change"] == row["after"] - row["before"]
    svg = (folder / "alignment.svg").read_text(encoding="utf-8")
    assert "shuffled pairs" in svg
    assert (folder / "alignment.png").stat().st_size > 10_000


def test_a_run_without_its_model_is_told_how_to_make_it(tiny_recipe: Path) -> None:
    lacking = make_run(tiny_recipe, "not-exported")
    with pytest.raises(UserError, match=r"run `lape-ds export .*` first"):
        analyze([lacking], only=["alignment"])


def test_sentences_asked_for_without_the_alignment_are_refused(run: AnalyzedRun) -> None:
    with pytest.raises(UserError, match="--parallel and --sentences are for the alignment"):
        analyze([run.run_dir], only=["dynamics"], parallel=ParallelRequest(num_sentences=5))
