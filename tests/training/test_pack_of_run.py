"""A language pack with its base is the exported model: bit by bit, file by file, and score by score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedModel

from lape_ds.corpora.streams import Document
from lape_ds.errors import UserError
from lape_ds.model.loading import fingerprint, load_model
from lape_ds.model.loss import LanguageModelLoss
from lape_ds.model.scoring import score_documents
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import load_recipe
from lape_ds.subnetwork.pack import Pack
from lape_ds.training.export import export_model
from lape_ds.training.pack_of_run import pack_of_run
from tests.processes import run_ranks
from tests.test_cli import run_main
from tests.tiny_models import MIXTURES, NUM_EXPERTS, NUM_LAYERS, tiny_model

SIZE = {"mixtral": 24}  # transformers runs its experts by grouped_mm, which takes no odd sizes on a CPU
CASES = [
    ("llama", "float32"),
    ("llama", "bfloat16"),
    ("opt", "float32"),
    ("phi3", "bfloat16"),
    ("mixtral", "float32"),
    ("mixtral", "bfloat16"),
]
NEURONS = [(0, 1), (0, 22), (2, 5), (2, 13)]
EXPERT_NEURONS = [(0, 0), (0, 22), (0, 46 + 5), (2, 91)]


def make_base(folder: Path, model_type: str, dtype: str, tokenizer_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    sizes = {"intermediate_size": SIZE[model_type]} if model_type in SIZE else {}
    model = tiny_model(model_type, dtype=getattr(torch, dtype), vocab_size=len(tokenizer), **sizes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    experts = NUM_EXPERTS if model_type in MIXTURES else 1
    NeuronSet(
        indices={"mlt_Latn": torch.tensor(EXPERT_NEURONS if experts > 1 else NEURONS, dtype=torch.int32)},
        num_layers=NUM_LAYERS,
        neurons_per_layer=experts * SIZE.get(model_type, 23),
        model_id=model_type,
        model_fingerprint=fingerprint(folder),
        method="lape",
        knobs={},
        experts_per_layer=experts,
    ).save(folder / "neurons.safetensors")


@pytest.fixture(scope="module")
def runs(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders by model type and dtype, and of two methods that make no packs; all trained by one process."""
    root = tmp_path_factory.mktemp("packs")
    common = [
        "train.max_steps=2",
        "train.schedule.warmup_steps=1",
        "train.heldout.every_steps=null",
        "train.replay={share: 0}",
    ]
    overrides: dict[str, list[str]] = {}
    for model_type, dtype in CASES:
        name = f"{model_type}-{dtype}"
        base = root / name
        make_base(base, model_type, dtype, tiny_recipe.parent / "tokenizer")
        overrides[name] = [
            f"model.path={base}",
            f"model.dtype={dtype}",
            f"train.neurons={base / 'neurons.safetensors'}",
        ]
    of_llama = overrides["llama-float32"]
    overrides["random"] = [*of_llama, "train.method=random"]
    overrides["full"] = [*of_llama, "train.method=full"]
    overrides["lora"] = [*of_llama, "train.method=lora"]
    arguments = {
        name: [*common, f"output_dir={root / 'out'}", f"train.run_name={name}", *settings]
        for name, settings in overrides.items()
    }
    run_ranks(
        "tests.training.pack_worker", [str(tiny_recipe), json.dumps(list(arguments.values()))], world_size=1
    )
    return {name: load_recipe(str(tiny_recipe), settings).run_dir for name, settings in arguments.items()}


def base_folder(run: Path) -> Path:
    return Path(load_recipe(str(run), []).model.path)


def loaded(folder: Path, dtype: str) -> PreTrainedModel:
    return load_model(folder, dtype=dtype, attn_implementation="sdpa")


def assert_same_bits(model: PreTrainedModel, other: PreTrainedModel) -> None:
    weights = dict(other.state_dict())
    assert model.state_dict().keys() == weights.keys()
    for name, value in model.state_dict().items():
        assert value.dtype == weights[name].dtype
        assert torch.equal(value.view(torch.uint8), weights[name].view(torch.uint8)), name


@pytest.mark.parametrize("name", [f"{model_type}-{dtype}" for model_type, dtype in CASES] + ["random"])
def test_base_and_pack_are_the_exported_model(runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    run, dtype = runs[name], name.split("-")[1] if "-" in name else "float32"
    folder = base_folder(run)
    made_of = fingerprint(folder)
    pack_of_run(run, "last").save(tmp_path / "pack.safetensors")
    pack = Pack.load(tmp_path / "pack.safetensors")
    exported = export_model(run, checkpoint="last", folder=tmp_path / "model")
    assert pack.num_entries == exported.trained
    assert 0.9 * exported.trained < exported.changed

    model = loaded(folder, dtype)
    pack.apply(model, base_fingerprint=made_of)
    assert_same_bits(model, loaded(exported.folder, dtype))
    model.save_pretrained(tmp_path / "again")
    assert fingerprint(tmp_path / "again") == fingerprint(exported.folder)
    assert fingerprint(folder) == made_of  # the base on disk, whose pages the model began with

    pack.revert(model)
    assert_same_bits(model, loaded(folder, dtype))


@pytest.mark.parametrize("name", ["llama-bfloat16", "opt-float32", "mixtral-float32"])
def test_base_and_pack_score_as_the_exported_model(runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    run = runs[name]
    folder, pack = base_folder(run), pack_of_run(run, "last")
    exported = export_model(run, checkpoint="last", folder=tmp_path / "model").folder
    generator = torch.Generator().manual_seed(0)
    documents = [
        Document(torch.randint(3, 100, (length,), generator=generator), length) for length in (5, 40, 64, 90)
    ]

    def scores(model: PreTrainedModel) -> torch.Tensor:
        settings = {"prefix_token_id": 1, "max_length": 64, "tokens_per_batch": 128}
        return score_documents(LanguageModelLoss(model), documents, **settings)

    # In another dtype than the training's, too: as if the exported folder had been loaded so.
    for dtype in ("float32", "bfloat16"):
        model = loaded(folder, dtype)
        before = scores(model)
        pack.apply(model, base_fingerprint=fingerprint(folder))
        assert torch.equal(scores(model), scores(loaded(exported, dtype)))
        assert not torch.equal(scores(model), before)
        pack.revert(model)
        assert torch.equal(scores(model), before)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_other_methods_make_no_pack(runs: dict[str, Path], method: str) -> None:
    with pytest.raises(UserError, match=f"was trained with train.method={method}, .*lape-ds export"):
        pack_of_run(runs[method])


def test_the_command(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["mixtral-bfloat16"]
    assert run_main(monkeypatch, "pack", "make", str(run)) == 0
    said = capsys.readouterr().out
    weights = 4 * 3 * 16
    assert f"4 neurons in 2 layers, {weights} weights of mlt_Latn" in said
    pack = Pack.load(run / "pack.safetensors")
    assert pack.neurons.tolist() == [list(pair) for pair in EXPERT_NEURONS]
    assert pack.languages == ("mlt_Latn",)
    assert pack.origin == {
        "recipe": "tiny", "run": run.name, "method": "subnetwork", "step": 2, "total_steps": 2,
    }  # fmt: skip
    with safe_open(run / "pack.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert file.metadata()["base_fingerprint"] == fingerprint(base_folder(run))
    parts = {f"{projection}_proj.{side}" for projection in ("gate", "up", "down") for side in ("new", "base")}
    assert names == {f"layers.{layer}.{part}" for layer in (0, 2) for part in {"neurons", *parts}}
    assert run_main(monkeypatch, "pack", "make", str(run), "--output", str(run / "pack.safetensors")) == 0
    # Only a pack is replaced.
    weights_file = tmp_path / "model.safetensors"
    weights_file.write_bytes((base_folder(run) / "model.safetensors").read_bytes())
    assert run_main(monkeypatch, "pack", "make", str(run), "--output", str(weights_file)) == 2
    assert "is not a file of language pack" in capsys.readouterr().err
    assert run_main(monkeypatch, "pack", "make", str(runs["full"])) == 2
    assert run_main(monkeypatch, "pack", "make", str(tmp_path)) == 2
    assert "is not the folder of a training" in capsys.readouterr().err
