from pathlib import Path

import pytest

from lape_ds.corpora.cldr import qualifies
from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.recipe import Recipe, load_recipe, to_yaml
from lape_ds.recipe.engine_keys import _ZERO as ZERO_KEYS
from lape_ds.recipe.engine_keys import OWNED_KEYS

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

BASE = """\
name: trial
output_dir: out
languages:
  target: mt
  identify: [mt, no, "et"]
model:
  path: org/model
corpus:
  source: {kind: cldr}
train:
  optimizer:
    learning_rate: 1e-4
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(BASE, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("users_text")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.languages.target == "mlt_Latn"
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(f"# {word}" in head for word in ("Launch", "On", "Time", "Expect"))


@pytest.mark.parametrize(("name", "fewest"), [("atlas", 120), ("atlas-llama-3.1-8b", 100)])
def test_atlases_name_many_languages_with_text(name: str, fewest: int) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    assert len(recipe.languages.identify) >= fewest
    assert 2 <= len(recipe.atlas.ablate) <= 24
    assert recipe.atlas.license is not None
    for code in recipe.languages.identify:
        language, source = find_language(code), recipe.corpus.source_of(code)
        has_text = qualifies(language) if source.kind == "cldr" else source.kind == "hub"
        assert has_text, code


def test_the_papers_recipes_hold_its_settings() -> None:
    # method.md: "The paper's training set-up" and "Definitions" (arXiv 2510.13580).
    for name in ("llama-3.1-8b", "mistral-nemo-12b", "aya-expanse-8b"):
        recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
        knobs = recipe.identify
        assert (knobs.top_rate, knobs.filter_rate, knobs.activation_bar_ratio) == (0.05, 0.95, 0.95)
        assert knobs.tokens_per_language == 13_100_000
        assert [code[:2] for code in ("mt", "af", "is", "cy", "mk", "lv", "lt", "sl", "sk", "et", "ka", "ne")]
        assert recipe.languages.identify == [
            *("mlt_Latn", "afr_Latn", "isl_Latn", "cym_Latn", "mkd_Cyrl", "lvs_Latn"),
            *("lit_Latn", "slv_Latn", "slk_Latn", "ekk_Latn", "kat_Geor", "npi_Deva"),
        ]
        optimizer = recipe.train.optimizer
        assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adamw", 1e-4, 0.01)
        assert (recipe.train.block_length, recipe.train.micro_batch_size) == (512, 2)
        assert (recipe.train.gradient_clipping, recipe.train.epochs) == (1.0, 1.0)
        assert recipe.eval.suites == ["monolingual", "general", "multilingual-retention"]


def test_loads_yaml_1_2_and_resolves_languages(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.train.optimizer.learning_rate == 1e-4  # a string in YAML 1.1
    assert recipe.languages.identify == ["mlt_Latn", "nob_Latn", "ekk_Latn"]  # `no` is false in YAML 1.1
    assert recipe.identify_dir == Path("out/identify")
    assert recipe.run_dir == Path("out/train/subnetwork")


def test_suites_are_one_or_several_and_data_sets_have_local_copies(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, []).eval.suites == ["quickstart"]
    overrides = [
        "eval.suite=[monolingual, own.yaml]",
        "eval.datasets={openlanguagedata/flores_plus: data/flores}",
    ]
    chosen = load_recipe(recipe_file, overrides).eval
    assert chosen.suites == ["monolingual", "own.yaml"]
    assert chosen.datasets == {"openlanguagedata/flores_plus": "data/flores"}


def test_overrides(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        [
            "train.optimizer.learning_rate=5e-5",
            "train.tokens=1_000",
            "train.method=random",
            "train.random_seed=3",
            "languages.identify=[no, mt, Welsh]",
            "train.weights.mt=2.5",
            "deepspeed.config.zero_optimization.overlap_comm=true",
            "identify.context_length=null",
        ],
    )
    assert recipe.train.optimizer.learning_rate == 5e-5
    assert recipe.train.tokens == 1000
    assert recipe.languages.identify == ["nob_Latn", "mlt_Latn", "cym_Latn"]
    assert recipe.train.weights == {"mlt_Latn": 2.5}
    assert recipe.deepspeed.config == {"zero_optimization": {"overlap_comm": True}}
    assert recipe.run_dir == Path("out/train/random-seed3")
    assert load_recipe(recipe_file, ["train.run_name=a1"]).run_dir == Path("out/train/a1")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # key, what is allowed, nearest, file:line
        (
            "learning_rate",
            "learnign_rate",
            [
                "train.optimizer.learnign_rate: unknown key; did you mean train.optimizer.learning_rate?",
                ":12)",
            ],
        ),
        ("train:\n", "learning_rate: 1\ntrain:\n", ["did you mean train.optimizer.learning_rate?", ":10)"]),
        (
            "{kind: cldr}",
            "{kind: cldr, record: 5}",
            ["corpus.source.record", "corpus.source.records?", ":9)"],
        ),
        ("{kind: cldr}", "{kind: cdlr}", ["corpus.source", "'files', 'hub', 'cldr'", ":9)"]),
        ("1e-4", '"1e-4"', ["train.optimizer.learning_rate: must be a valid number", 'not "1e-4"', ":12)"]),
        ("1e-4", "-1", ["must be greater than 0, not -1", ":12)"]),
        ("1e-4", ".nan", ["learning_rate", ":12)"]),
        (
            "target: mt",
            "target: Maltees",
            ["languages.target: unknown language 'Maltees'", "mlt_Latn", ":4)"],
        ),
        ("target: mt", "target: cy", ["target cym_Latn must be among identify", ":3)"]),
        ("target: mt", "target: true", ["languages.target", "must be a language's code", ":4)"]),
        ("[mt, no,", "[mt, mlt, no,", ["languages.identify: mlt_Latn named twice", ":5)"]),
        ('[mt, no, "et"]', "[mt]", ["languages.identify", "at least 2 items", ":5)"]),
        ("output_dir: out\n", "", ["output_dir: must be given", "trial.yaml:1)"]),
        ("name: trial", "name: a/b", ["name", "pattern", ":1)"]),
        ("  path: org/model", "  path: org/model\n  path: b", [":8: model.path is given twice"]),
        ("train:", "train: [", ["trial.yaml:", "not YAML"]),
        ("train:", "train: !!python/name:os.system\n#", ["trial.yaml:10", "tag"]),
        ("train:", "train: &a\n  weights: *a\n", ["alias"]),
    ],
)
def test_refusals(recipe_file: Path, old: str, new: str, expected: list[str]) -> None:
    assert old in BASE
    recipe_file.write_text(BASE.replace(old, new, 1), encoding="utf-8")
    message = refusal(recipe_file)
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["evl.suite=general"], ["evl: unknown key; did you mean eval?", "(override 'evl.suite=general')"]),
        (["train.tokens=lots"], ["train.tokens", "'all'", '"lots"', "override 'train.tokens=lots'"]),
        (["train.tokens"], ["must read key=value"]),
        (["train.micro_batch_size=true"], ["train.micro_batch_size: must be a valid integer, not true"]),
        (["deepspeed.zero_stage=true"], ["deepspeed.zero_stage", "must be a number"]),
        (["deepspeed.zero_stage=4"], ["deepspeed.zero_stage: must be 0, 1, 2 or 3, not 4"]),
        (["name.x=1"], ["name is 'trial', which has no keys"]),
        (["train.lr=1"], ["train.lr: unknown key"]),
        (["deepspeed.zero_stage=0", "deepspeed.offload_optimizer=cpu"], ["stage 0 has no optimizer offload"]),
        (["train.languages=[cy]"], ["cym_Latn has no neurons"]),
        (["train.weights={cy: 1}"], ["train.weights: cym_Latn is not trained"]),
        (["train.weights={mt: 1, mlt: 2}"], ["train.weights: mlt_Latn named twice"]),
        (["train.optimizer.momentum=0.5"], ["momentum has no use with name: adamw"]),
        (["train.optimizer.name=sgd", "train.optimizer.eps=1e-3"], ["eps has no use with name: sgd"]),
        (["train.optimizer.betas=[0.9, 1.0]"], ["train.optimizer.betas: each must be at least 0"]),
        (["train.schedule.final_ratio=0.1"], ["final_ratio has no use with name: constant"]),
        (["train.max_steps=5", "train.schedule.warmup_steps=5"], ["must be less than max_steps"]),
        (
            ["identify.method=probability", "identify.filter_rate=0.9"],
            ["filter_rate has no use with method: probability", "for lape, family_lape"],
        ),
        (["identify.families={mt: Italic}"], ["families has no use with method: lape"]),
        (
            ["identify.method=family_lape", "identify.families={ka: Italic}"],
            ["identify.families: kat_Geor is not among languages.identify"],
        ),
        (["atlas.ablate=[mt, cy]"], ["atlas.ablate: cym_Latn is not among languages.identify"]),
        (["atlas.license=Apache 2.0"], ["atlas.license"]),
        (["identify.method=entropy"], ["'lape', 'family_lape', 'probability' or 'mean_activation'"]),
        (["train.replay.languages=[no]"], ["languages has no use with share: 0"]),
        (["train.anchor.kl=0.5"], ["train", "anchor.kl", "set replay.share above 0"]),
        (["train.anchor.kl=-1"], ["train.anchor.kl"]),
        (["train.replay={share: 0.1, languages: [mt]}"], ["mlt_Latn is trained already"]),
        (["model.dtype=float32", "model.attn_implementation=flash_attention_2"], ["needs dtype: bfloat16"]),
        (
            ["deepspeed.config={train_batch_size: 8}"],
            ["train_batch_size is decided by train.micro_batch_size"],
        ),
        (["deepspeed.config={zero_optimization: {stage: 1}}"], ["deepspeed.zero_stage"]),
        (["deepspeed.config={zero_optimisation: {}}"], ["did you mean zero_optimization?"]),
        (
            ["deepspeed.config={zero_optimization: {reduce_bucket: 1}}"],
            ["did you mean zero_optimization.reduce_bucket_size?"],
        ),
        (
            ["deepspeed.config={zero_optimization: {round_robin_gradients: true}}"],
            ["round_robin_gradients: true"],
        ),
        *(
            (
                [f"deepspeed.config={config}"],
                [f"{key} asks for DeepSpeed's universal checkpoint", "remove it"],
            )
            for config, key in (
                ("{checkpoint: {load_universal: true}}", "checkpoint.load_universal"),
                ("{load_universal_checkpoint: true}", "load_universal_checkpoint"),
            )
        ),
        (
            ["deepspeed.config={zero_optimization: {offload_param: {device: cpu}}}"],
            ["offload_param.device is decided by deepspeed.offload_parameters"],
        ),
        (
            ["deepspeed.config={zero_optimization: {offload_param: {buffer_size: 9}}}"],
            ["offload_param needs offload_parameters: cpu or nvme"],
        ),
        (
            ["deepspeed.config.zero_optimization.round_robin_gradients=true", "train.method=full"],
            ["neither a neuron mask nor a checkpoint would find its own"],
        ),
        (
            ["deepspeed.config={zero_optimization: {zero_quantized_weights: true}}"],
            ["zero_quantized_weights: true keeps weights that differ from their masters"],
        ),
        (
            [
                "deepspeed.zero_stage=3",
                "deepspeed.config={zero_optimization: {offload_optimizer: {device: nvme}}}",
            ],
            ["nvme swaps masters out of reach of checkpoints", "set deepspeed.offload_optimizer: cpu"],
        ),
        (
            ["deepspeed.config={zero_optimization: {offload_optimizer: {device: cpu}}}"],
            ["offload_optimizer.device is decided by deepspeed.offload_optimizer"],
        ),
        (
            ["train.method=full", "train.engine=masked"],
            ["train.engine has no use with train.method: full", "for subnetwork, random, topk"],
        ),
        (["train.random_seed=3"], ["train.random_seed has no use with train.method: subnetwork"]),
        (["train.lora.r=8"], ["train.lora has no use with train.method: subnetwork", "whose sweep trains"]),
        (
            ["train.lora.r=8", "sweep.variants=[{method: full}]"],
            ["train.lora has no use with train.method: subnetwork"],
        ),
        (
            ["deepspeed.config={zero_optimization: {zero_quantized_nontrainable_weights: true}}"],
            ["partitioned before it is known which of them train"],
        ),
        (["deepspeed.offload_parameters=cpu"], ["offload_parameters: cpu needs zero_stage: 3, not 2"]),
        (
            ["deepspeed.zero_stage=3", "deepspeed.offload_parameters=nvme"],
            ["offload_parameters: nvme and nvme_path (a folder on the disk) go together"],
        ),
        (["deepspeed.zero_stage=3", "deepspeed.nvme_path=/tmp"], ["nvme and nvme_path"]),
        (["train.neurons=nowhere.safetensors"], ["train.neurons: no such file nowhere.safetensors"]),
        ([f"output_dir={__file__}/runs/a"], [f"output_dir: {__file__} is a file, so no folder can be made"]),
        (
            ["corpus.source={kind: files, path: 'nowhere/{iso639_3}.txt'}"],
            ["no file or folder nowhere/mlt.txt"],
        ),
        (["corpus.source={kind: files, path: '{isso}'}"], ["unknown placeholder {isso}"]),
        (
            ["corpus.source={kind: hub, dataset: d, config: '{fineweb2}'}", "languages.identify=[mt, en]"],
            ["corpus.source.config: English (eng_Latn) has no {fineweb2}"],
        ),
        (
            ["corpus.per_language={war: {kind: cldr}}", "languages.identify=[mt, war]"],
            ["CLDR has no locale for war"],
        ),
    ],
)
def test_refused_overrides(recipe_file: Path, overrides: list[str], expected: list[str]) -> None:
    message = refusal(recipe_file, *overrides)
    for part in expected:
        assert part in message


def test_unreadable_files(tmp_path: Path) -> None:
    assert "no recipe" in refusal(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: Türkçe".encode("latin-1"))
    assert "not UTF-8" in refusal(tmp_path / "latin.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "must hold keys" in refusal(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert "must hold keys" in refusal(tmp_path / "empty.yaml")
    assert "folder without recipe.yaml" in refusal(tmp_path)


@pytest.mark.usefixtures("users_text")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_yaml_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    (tmp_path / "again.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_round_trip_of_strings_that_look_like_something_else(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.wandb='1e-4'", "model.revision='no'", "train.run_name='010'"])
    assert (recipe.train.wandb, recipe.model.revision, recipe.train.run_name) == ("1e-4", "no", "010")
    (tmp_path / "again.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_engine_keys_are_deepspeeds() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    owned = {key.removeprefix("zero_optimization.") for key in OWNED_KEYS if key.startswith("zero_opt")}
    assert fields == owned | set(ZERO_KEYS)


def test_sections_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, lape_ds.recipe; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_constructed_in_python() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "output_dir": "o",
            "languages": {"target": "mt", "identify": ["mt", "af"]},
            "model": {"path": "m"},
            "corpus": {"source": {"kind": "cldr"}, "per_language": {"mt": {"kind": "cldr", "records": 5}}},
        }
    )
    assert recipe.corpus.source_of("mlt_Latn") != recipe.corpus.source_of("afr_Latn")
    assert recipe.all_languages() == ["mlt_Latn", "afr_Latn"]
