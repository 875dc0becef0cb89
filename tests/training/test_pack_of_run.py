"""A language pack with its base is the exported model: bit by bit, file by file, and score by score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedModel

from lape_ds.analysis.pack_card import write_pack_card
from lape_ds.corpora.streams import Document
from lape_ds.errors import UserError
from lape_ds.evaluation.results import Score, TaskResult, write_result
from lape_ds.model.loading import fingerprint, load_model
from lape_ds.model.loss import LanguageModelLoss
from lape_ds.model.scoring import score_documents
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import load_recipe
from lape_ds.subnetwork.pack import Pack
from lape_ds.training.export import export_model
from lape_ds.training.pack_folders import apply_to_folder, difference, revert_in_folder
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
    measured = [setting for setting in common if "heldout" not in setting]
    overrides["joint"] = ["train.languages=[mt, en]", "train.temperature=2"]
    arguments = {
        name: [
            *(measured if name == "joint" else common),
            f"output_dir={root / 'out'}",
            f"train.run_name={name}",
            *settings,
        ]
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
    assert "is a folder without recipe.yaml" in capsys.readouterr().err


def weight_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("model*.safetensors*")}


FOLDER_CASES = ["llama-float32", "llama-bfloat16", "opt-float32", "phi3-bfloat16", "mixtral-bfloat16"]


@pytest.mark.parametrize("name", FOLDER_CASES)
def test_folders_there_and_back(runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    base, pack = base_folder(runs[name]), pack_of_run(runs[name], "last")
    exported = export_model(runs[name], checkpoint="last", folder=tmp_path / "exported")
    there = apply_to_folder(pack, base, tmp_path / "there")
    assert weight_bytes(tmp_path / "there") == weight_bytes(exported.folder)
    assert (there.changed, there.is_base) == (exported.changed, False)
    AutoTokenizer.from_pretrained(tmp_path / "there")
    back = revert_in_folder(pack, tmp_path / "there", tmp_path / "back")
    assert (back.changed, back.is_base) == (exported.changed, True)
    assert weight_bytes(tmp_path / "back") == weight_bytes(base)
    with pytest.raises(UserError, match="does not hold this pack"):
        revert_in_folder(pack, base, tmp_path / "back")
    with pytest.raises(UserError, match=r"there holds .* already: .* `lape-ds pack revert` takes it out"):
        apply_to_folder(pack, tmp_path / "there", tmp_path / "there twice")
    with pytest.raises(UserError, match="holds other things"):
        apply_to_folder(pack, base, tmp_path / "exported")


@pytest.mark.parametrize("name", FOLDER_CASES)
def test_a_difference_is_the_pack_of_the_run(runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    run = runs[name]
    base, expected = base_folder(run), pack_of_run(run, "last")
    exported = export_model(run, checkpoint="last", folder=tmp_path / "exported")
    pack = difference(base, exported.folder, base_model=str(base), languages=["mlt_Latn"])
    pack.save(tmp_path / "pack.safetensors")
    expected.save(tmp_path / "expected.safetensors")
    assert pack.neurons.tolist() == expected.neurons.tolist()
    metadata, tensors = [], []
    for file in ("pack", "expected"):
        with safe_open(tmp_path / f"{file}.safetensors", framework="pt") as opened:
            metadata.append(opened.metadata())
            tensors.append({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118 - no mapping
    for key in ("base_fingerprint", "languages", "base_model"):
        assert metadata[0][key] == metadata[1][key]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("full", "outside the feed-forward neurons, in .*as after full"),
        ("lora", "of the 69 neurons differ .*LoRA training"),
    ],
)
def test_a_difference_of_other_training_is_refused(
    runs: dict[str, Path], method: str, message: str, tmp_path: Path
) -> None:
    base = base_folder(runs[method])
    export_model(runs[method], checkpoint="last", folder=tmp_path / "exported")
    with pytest.raises(UserError, match=message):
        difference(base, tmp_path / "exported", base_model=str(base))


def test_folders_that_make_no_difference(runs: dict[str, Path], tmp_path: Path) -> None:
    base, other = base_folder(runs["llama-float32"]), base_folder(runs["opt-float32"])
    with pytest.raises(UserError, match="holds the same weights"):
        difference(base, base, base_model="base")
    with pytest.raises(UserError, match=r"\(llama\) and .* \(opt\) are not two versions of one model"):
        difference(base, other, base_model="base")


def test_packs_of_each_language_of_a_joint_run(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["joint"]
    whole, shared = pack_of_run(run, "last"), [(0, 1)]  # tests/conftest.py has the sets
    own = {"mlt_Latn": [(0, 1), (0, 30), (2, 46)], "eng_Latn": [(0, 1), (1, 2)]}
    assert whole.languages == tuple(own)
    assert whole.neurons.tolist() == sorted(map(list, {pair for pairs in own.values() for pair in pairs}))
    together = whole.new[0]["up_proj"][whole.index(0) == 1]
    for code, pairs in own.items():
        pack = pack_of_run(run, "last", language=code)
        assert pack.languages == (code,)
        assert pack.neurons.tolist() == [list(pair) for pair in pairs]
        assert pack.origin["shared_neurons"] == len(shared)
        assert torch.equal(pack.new[0]["up_proj"][:1], together)
    with pytest.raises(
        UserError, match="knows no neurons of kat_Geor by itself: it has those of mlt_Latn, eng_Latn"
    ):
        pack_of_run(run, "last", language="kat_Geor")
    assert run_main(monkeypatch, "pack", "make", str(run), "--language", "mt", "--checkpoint", "last") == 0
    assert "trained together with eng_Latn: 1 of its neurons are theirs too" in capsys.readouterr().out
    assert Pack.load(run / "pack-mlt_Latn.safetensors").languages == ("mlt_Latn",)


def test_a_recipe_may_stand_for_its_run(
    runs: dict[str, Path], tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = runs["llama-float32"]
    settings = [f"output_dir={run.parents[1]}", f"train.run_name={run.name}"]
    output = ["--output", str(tmp_path / "pack.safetensors"), "--checkpoint", "last"]
    assert run_main(monkeypatch, "pack", "make", str(tiny_recipe), *settings, *output) == 0
    assert Pack.load(tmp_path / "pack.safetensors").origin["run"] == run.name


def test_the_commands_on_files(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["joint"]
    base = base_folder(run)

    def at(name: str) -> str:
        return str(tmp_path / name)

    def main(*arguments: str) -> tuple[int | str | None, str, str]:
        code = run_main(monkeypatch, "pack", *arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    for code in ("mt", "en"):
        assert (
            main(
                "make",
                str(run),
                "--language",
                code,
                "--checkpoint",
                "last",
                "--output",
                at(code + ".safetensors"),
            )[0]
            == 0
        )
    parts = [at("mt.safetensors"), at("en.safetensors")]
    code, _, error = main("compose", *parts, at("both.safetensors"))
    assert (code, "1 of 4 neurons are in several packs (mlt_Latn and eng_Latn 1)" in error) == (2, True)
    code, said, _ = main("compose", *parts, at("both.safetensors"), "--shared", "first")
    assert (code, "taken by the rule first" in said) == (0, True)
    assert main("apply", at("both.safetensors"), str(base), at("model"))[0] == 0
    exported = export_model(run, checkpoint="last", folder=tmp_path / "exported")
    assert weight_bytes(tmp_path / "model") == weight_bytes(
        exported.folder
    )  # the parts of one training make it whole
    code, said, _ = main("revert", at("both.safetensors"), at("model"), at("back"))
    assert (code, "all weights are those of its base" in said) == (0, True)
    assert fingerprint(tmp_path / "back") == fingerprint(base)
    code, said, _ = main("diff", str(base), at("model"), at("diff.safetensors"), "--languages", "Maltese, en")
    assert (code, "4 neurons in 3 layers" in said) == (0, True)
    shown = json.loads(main("show", at("diff.safetensors"), "--json")[1])
    assert (shown["languages"], shown["neurons_per_layer"]) == (
        ["mlt_Latn", "eng_Latn"],
        {"0": 2, "1": 1, "2": 1},
    )
    assert shown["bytes"] == (tmp_path / "diff.safetensors").stat().st_size
    assert "neurons per layer  0:2  1:1  2:1" in main("show", at("diff.safetensors"))[1]


def test_the_card(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["joint"]
    recipe = load_recipe(str(run))
    for label, value in (("base", 0.25), (run.name, 0.75)):
        result = TaskResult(
            "topic_mlt", "mlt_Latn", 4, {"acc": Score(value, None)}, "0", {}, "topic", "acc", "higher", 0.25
        )
        write_result(recipe.output_dir / "eval" / label, result, [])
    pack, card = tmp_path / "pack.safetensors", tmp_path / "README.md"
    pack_of_run(run, "last").save(pack)
    write_pack_card(pack, card, run_dir=run, licence="apache-2.0")
    text = card.read_text()
    front = text.split("---")[1]
    assert "license: apache-2.0" in front
    assert "- mt\n- en" in front
    assert "base_model" not in front  # a folder here is nothing on the hub
    assert "| topic | mlt_Latn | acc | 0.2500 | 0.7500 |" in text
    assert "kind cldr, records 300" in text
    assert "temperature: 2.0" in text
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    bits = [line["heldout_bits_per_byte"]["mlt_Latn"] for line in lines if "heldout_bits_per_byte" in line]
    assert f"| Maltese | {bits[0]:.4f} | {bits[-1]:.4f} | {bits[-1] - bits[0]:+.4f} |" in text
    assert str(run.parent) not in text  # no path of this machine
    assert 'from_pretrained("BASE", dtype=' in text, "a visitor has no folder of that name"
    assert f"whose fingerprint is `{Pack.load(pack).base_fingerprint[:16]}`" in text
    assert "pip install" in text
    write_pack_card(pack, card)  # its own is replaced; without the run it says so
    assert "data, recipe and results are not known" in card.read_text()
    card.write_text("mine")
    with pytest.raises(UserError, match="is not a card of"):
        write_pack_card(pack, card)
    with pytest.raises(UserError, match="the pack was not made of"):
        write_pack_card(pack, tmp_path / "other.md", run_dir=runs["random"])
