"""The composed recipe: every setting of a run, section by section, and which of them cannot go together.

First room on the data's way: every stage takes its section from here. Needs no torch, so that a bad recipe is
refused in milliseconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from lape_ds.recipe.base import NAME, Section
from lape_ds.recipe.engine_keys import check_engine_keys
from lape_ds.recipe.environment import Environment
from lape_ds.recipe.fields import ByLanguage, LanguageCode, LanguageCodes, TokenBudget
from lape_ds.recipe.sweep_section import SweepSection
from lape_ds.recipe.train_section import NEURON_METHODS, LoRASection, TrainSection


def _not_bool(value: object) -> object:
    """`true` equals 1, and Literal takes it for that."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {value}")
    return value


class LanguagesSection(Section):
    """Which languages are compared (`identify`) and which one is improved (`target`)."""

    target: LanguageCode
    identify: LanguageCodes = Field(min_length=2)

    @model_validator(mode="after")
    def _target_is_identified(self) -> LanguagesSection:
        if self.target not in self.identify:
            raise ValueError(f"target {self.target} must be among identify ({', '.join(self.identify)})")
        return self


class TextSource(Section):
    """What all sources of text have."""

    romanise: bool = False  # in Latin letters, to tell what follows a script from what follows a language


class FilesSource(TextSource):
    """Local .txt, .jsonl or .parquet (also .gz/.zst/.bz2/.xz), a file or a folder of them.

    `path` may hold placeholders of the language table, e.g. `data/{iso639_3}`.
    """

    kind: Literal["files"]
    path: str
    column: str = "text"
    document: Literal["line", "paragraph", "file"] = "line"  # what one document is in a .txt file


class HubSource(TextSource):
    """A hub data set, streamed. `config` may hold placeholders, e.g. `{glotcc}` or `{fineweb2}`."""

    kind: Literal["hub"]
    dataset: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None


class CLDRSource(TextSource):
    """Records rendered from CLDR by babel: real text in over 200 locales with no download."""

    kind: Literal["cldr"]
    records: PositiveInt = 20_000
    seed: int = 0


Source = Annotated[FilesSource | HubSource | CLDRSource, Field(discriminator="kind")]


class CorpusSection(Section):
    """Where text comes from and how it is split."""

    source: Source
    per_language: ByLanguage[Source] = {}
    cache_dir: Path | None = (
        None  # None: <output_dir>/corpus; packed text is reused across runs by fingerprint
    )
    heldout_share: float = Field(default=0.01, gt=0, lt=0.5)
    on_bad_line: Literal["stop", "skip"] = "stop"

    def source_of(self, code: str) -> FilesSource | HubSource | CLDRSource:
        """Where the text of the language `code` comes from."""
        return self.per_language.get(code, self.source)


class CreateSection(Section):
    """A tiny model made from the recipe's own corpora: SentencePiece tokenizer, Llama, pre-training."""

    vocab_size: PositiveInt = 4096
    tokenizer_documents_per_language: PositiveInt = 2000
    llama: dict[str, Any]  # keyword arguments of transformers.LlamaConfig
    pretrain: TrainSection  # languages empty: all identified languages

    @model_validator(mode="after")
    def _trains_everything(self) -> CreateSection:
        if self.pretrain.method != "full":
            raise ValueError(f"pretrain.method must be full for a new model, not {self.pretrain.method}")
        return self


class ModelSection(Section):
    """A Hugging Face causal language model: hub id or folder."""

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    create: CreateSection | None = None  # make `path` when it is not there (`lape-ds pretrain`)

    @model_validator(mode="after")
    def _attention_has_kernel(self) -> ModelSection:
        if self.attn_implementation == "flash_attention_2" and self.dtype == "float32":
            raise ValueError("attn_implementation: flash_attention_2 needs dtype: bfloat16")
        return self


class IdentifySection(Section):
    """Counting p(gate > 0) and LAPE selection (knobs and defaults as published, arXiv 2510.13580), or another selection."""

    tokens_per_language: TokenBudget = 13_100_000
    # stable: a language ends early, at a doubling of its tokens, when its sets from half and from all of its documents agree so
    stop_when: Literal["budget", "stable"] = "budget"
    stable_at: float = Field(default=0.95, gt=0, le=1)  # Jaccard
    context_length: PositiveInt | None = None  # None: the model's full context
    reset_positions: bool = False  # a document in a block sees itself only, and begins at position 0
    batch_size: PositiveInt = 1
    dtype: Literal["float32", "bfloat16", "float16"] | None = (
        None  # the model's as it counts; None: model.dtype
    )
    # 3: the model is divided over all ranks, if it does not fit one GPU
    zero_stage: Annotated[Literal[0, 3], BeforeValidator(_not_bool)] = 0
    shard_tokens: PositiveInt = 1_000_000  # the largest unit of work, lost when a run is killed
    # "2/4": only the units whose number is 2 modulo 4, and no selection; `lape-ds neurons merge` adds up the parts
    part: str | None = Field(default=None, pattern=r"^[0-9]{1,6}/[1-9][0-9]{0,5}$")
    # family_lape: entropy over families; probability, mean_activation: each language's `top_rate` most active neurons
    method: Literal["lape", "family_lape", "probability", "mean_activation"] = "lape"
    families: ByLanguage[str] = {}  # of family_lape, before the shipped table: e.g. {mlt: Romance}
    top_rate: float = Field(default=0.05, gt=0, le=1)
    filter_rate: float = Field(default=0.95, gt=0, le=1)
    activation_bar_ratio: float = Field(default=0.95, gt=0, le=1)
    bootstrap_resamples: NonNegativeInt = 50  # of the documents, for every neuron's confidence; 0: none

    @property
    def part_of(self) -> tuple[int, int] | None:
        """`part` as numbers: which, counted from 0, of how many."""
        if self.part is None:
            return None
        which, of = self.part.split("/")
        return int(which), int(of)

    @model_validator(mode="after")
    def _stop_and_part_are_possible(self) -> IdentifySection:
        if self.stop_when == "stable" and self.method == "mean_activation":
            raise ValueError(
                "stop_when: stable cannot go with method: mean_activation, whose sums are not kept by document; take stop_when: "
                "budget"
            )
        if self.part_of is not None:
            which, of = self.part_of
            if which >= of:
                raise ValueError(
                    f"part: {self.part} is none of {of} parts, which are 0/{of} to {of - 1}/{of}"
                )
            if self.stop_when == "stable":
                raise ValueError(
                    f"part: {self.part} and stop_when: stable cannot go together: whether a set is stable is told by all counts; "
                    "set stop_when: budget"
                )
        return self

    @model_validator(mode="after")
    def _no_idle_setting(self) -> IdentifySection:
        if self.stop_when == "budget" and self.stable_at != type(self).model_fields["stable_at"].default:
            raise ValueError(
                "stable_at has no use with stop_when: budget; remove it, or set stop_when: stable"
            )
        lape = ("lape", "family_lape")
        users = {"families": ("family_lape",), "filter_rate": lape, "activation_bar_ratio": lape}
        for key, methods in users.items():
            if self.method not in methods and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} has no use with method: {self.method}; remove it (it is for {', '.join(methods)})"
                )
        return self


class DeepSpeedSection(Section):
    """What the engine is told; `config` is merged into DeepSpeed's own configuration as it stands."""

    zero_stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_not_bool)] = 2
    offload_optimizer: Literal["none", "cpu"] = "none"
    offload_parameters: Literal["none", "cpu", "nvme"] = (
        "none"  # all weights, but for the layers that compute
    )
    nvme_path: Path | None = None  # a folder on an NVMe disk of each node
    config: dict[str, Any] = {}

    @field_validator("config")
    @classmethod
    def _keys_are_free(cls, config: dict[str, Any]) -> dict[str, Any]:
        check_engine_keys(config)
        return config

    @model_validator(mode="after")
    def _offload_has_partitions(self) -> DeepSpeedSection:
        if self.zero_stage == 0 and self.offload_optimizer != "none":
            raise ValueError(
                "offload_optimizer: cpu needs zero_stage 1, 2 or 3; stage 0 has no optimizer offload"
            )
        zero = self.config.get("zero_optimization", {})
        if self.zero_stage < 3 and self.offload_parameters != "none":
            raise ValueError(
                f"offload_parameters: {self.offload_parameters} needs zero_stage: 3, not {self.zero_stage}: only stage 3 gathers "
                "weights when a layer needs them"
            )
        if (self.offload_parameters == "nvme") != (self.nvme_path is not None):
            raise ValueError("offload_parameters: nvme and nvme_path (a folder on the disk) go together")
        if "offload_param" in zero and self.offload_parameters == "none":
            raise ValueError("config.zero_optimization.offload_param needs offload_parameters: cpu or nvme")
        return self


class LaunchSection(Section):
    """Processes per node that `lape-ds identify`, `train` and `eval` start; a hostfile's slots and Slurm's tasks go before."""

    num_ranks: PositiveInt | None = None  # None: one per GPU; without a GPU, one
    timeout_minutes: PositiveFloat = 10.0  # how long ranks wait for each other to start
    check_memory: Literal["refuse", "warn", "off"] = (
        "refuse"  # what to do where by the plan a step cannot fit
    )


class EvalSection(Section):
    """Which suites `lape-ds eval` runs."""

    suite: str | Annotated[list[str], Field(min_length=1)] = "quickstart"  # a name or path, or several
    datasets: dict[str, str] = {}  # id on the hub -> local folder or file read in its place
    batch_size: PositiveInt = 16
    limit: PositiveInt | None = None  # documents per task
    backend: Literal["hf", "vllm"] = "hf"  # vLLM divides a model over the visible GPUs, in one process

    @property
    def suites(self) -> list[str]:
        """Names or paths."""
        return [self.suite] if isinstance(self.suite, str) else self.suite


class AtlasSection(Section):
    """What `lape-ds atlas` does beyond identification, and says of its folder."""

    # Whose neurons are switched off, and whose text is measured; empty: all identified ones. Takes the square of their number.
    ablate: LanguageCodes = []
    num_random: PositiveInt = 3  # random sets of each of them
    license: str | None = Field(
        default=None, pattern=r"^[a-z0-9][a-z0-9.+-]*$"
    )  # of the folder, as the hub names licences, e.g. cc-by-4.0; `--push` needs one


class Recipe(Section):
    """A whole recipe. `lape-ds <stage> RECIPE key=value …` loads one with `load_recipe`."""

    name: str = Field(pattern=f"^{NAME}$")
    seed: int = 0
    output_dir: Path
    languages: LanguagesSection
    model: ModelSection
    corpus: CorpusSection
    identify: IdentifySection = IdentifySection()
    train: TrainSection = TrainSection()
    deepspeed: DeepSpeedSection = DeepSpeedSection()
    launch: LaunchSection = LaunchSection()
    env: Environment = {}  # variables of every process, e.g. {NCCL_SOCKET_IFNAME: ib0}
    eval: EvalSection = EvalSection()
    sweep: SweepSection | None = None  # None: every method at its own rates
    atlas: AtlasSection = AtlasSection()

    @property
    def corpus_dir(self) -> Path:
        """Where packed text is kept."""
        return self.corpus.cache_dir or self.output_dir / "corpus"

    @property
    def identify_dir(self) -> Path:
        """Where `identify` writes counts and neurons."""
        return self.output_dir / "identify"

    @property
    def counting_dir(self) -> Path:
        """Where this `identify` counts: a folder of its own for each `identify.part`."""
        if self.identify.part_of is None:
            return self.identify_dir
        which, of = self.identify.part_of
        return self.identify_dir / f"part-{which}-of-{of}"

    @property
    def counting_dtype(self) -> Literal["float32", "bfloat16", "float16"]:
        """In which the model counts."""
        return self.identify.dtype or self.model.dtype

    @property
    def run_dir(self) -> Path:
        """Where `train` writes checkpoints, metrics and the exported model."""
        method = self.train.method + (
            f"-seed{self.train.random_seed}" if self.train.method == "random" else ""
        )
        return self.output_dir / "train" / (self.train.run_name or method)

    @property
    def sweep_dir(self) -> Path:
        """Where `sweep` writes the frontier; its runs are training runs and lie with these."""
        return self.output_dir / "sweep"

    @property
    def atlas_dir(self) -> Path:
        """What `atlas` writes, as it may be published."""
        return self.output_dir / "atlas"

    @property
    def needs_neurons(self) -> bool:
        """Whether training reads the target's neurons: to train them, their like, or as many weights as they have."""
        matched = self.train.method == "lora" and self.train.lora.r == "match"
        return self.train.method in NEURON_METHODS or matched

    @property
    def trained_languages(self) -> list[str]:
        """The languages that `train` improves."""
        return self.train.languages or [self.languages.target]

    def all_languages(self) -> list[str]:
        """Every language whose text some stage reads, each once."""
        trainings = [self.train] + ([self.model.create.pretrain] if self.model.create else [])
        named = [
            part
            for train in trainings
            for part in (train.languages, train.replay.languages, train.heldout.languages)
        ]
        return list(dict.fromkeys(code for part in [self.languages.identify, *named] for code in part))

    @model_validator(mode="after")
    def _counting_has_kernel(self) -> Recipe:
        if self.model.attn_implementation == "flash_attention_2" and self.identify.dtype == "float32":
            raise ValueError(
                "identify.dtype: float32 cannot go with model.attn_implementation: flash_attention_2; take bfloat16 or float16"
            )
        return self

    @model_validator(mode="after")
    def _families_are_compared(self) -> Recipe:
        for code in self.identify.families:
            if code not in self.languages.identify:
                raise ValueError(f"identify.families: {code} is not among languages.identify")
        return self

    @model_validator(mode="after")
    def _ablated_are_identified(self) -> Recipe:
        for code in self.atlas.ablate:
            if code not in self.languages.identify:
                raise ValueError(f"atlas.ablate: {code} is not among languages.identify")
        return self

    @model_validator(mode="after")
    def _neurons_are_known(self) -> Recipe:
        if self.needs_neurons:
            for code in self.trained_languages:
                if code not in self.languages.identify:
                    raise ValueError(
                        f"train.languages: {code} has no neurons unless languages.identify names it; "
                        "add it there, or take a train.method without neurons: full, ffn, ia3, lora"
                    )
        return self

    @model_validator(mode="after")
    def _no_idle_setting(self) -> Recipe:
        """Settings of another method may be there for a sweep that trains it; else they would seem to do something."""
        train = self.train
        variants = [] if self.sweep is None else self.sweep.variants
        methods = {train.method, *(variant.method for variant in variants)}
        needs: dict[str, tuple[bool, tuple[str, ...]]] = {
            "engine": (train.engine != "compact", NEURON_METHODS),
            "random_seed": (train.random_seed != 0, ("random",)),
            "lora": (train.lora != LoRASection(), ("lora",)),
        }
        for key, (is_set, users) in needs.items():
            if is_set and not methods & set(users):
                raise ValueError(
                    f"train.{key} has no use with train.method: {train.method}; remove it (it is for {', '.join(users)}; "
                    "a recipe whose sweep trains one of these may have it)"
                )
        return self

    @model_validator(mode="after")
    def _compiler_sees_weights(self) -> Recipe:
        if self.train.torch_compile and self.deepspeed.zero_stage == 3:
            raise ValueError(
                "train.torch_compile: true has no use under deepspeed.zero_stage 3, where the compiler falls back to eager code; "
                "remove it, or take stage 0, 1 or 2"
            )
        return self

    @model_validator(mode="after")
    def _weights_are_used(self) -> Recipe:
        trainings = {"train": (self.train, self.trained_languages)}
        if self.model.create is not None:
            pretrain = self.model.create.pretrain
            trainings["model.create.pretrain"] = (pretrain, pretrain.languages or self.languages.identify)
        for key, (train, trained) in trainings.items():
            for code in train.weights:
                if code not in trained:
                    raise ValueError(f"{key}.weights: {code} is not trained (trained: {', '.join(trained)})")
            if train.temperature is not None and len(trained) == 1:
                raise ValueError(
                    f"{key}.temperature has no use with one trained language ({trained[0]}); name more in {key}.languages, or "
                    "remove it"
                )
        return self

    @model_validator(mode="after")
    def _replay_has_languages(self) -> Recipe:
        trained, replay = self.trained_languages, self.train.replay
        both = [code for code in replay.languages if code in trained]
        if both:
            raise ValueError(f"train.replay.languages: {both[0]} is trained already")
        if replay.share > 0 and not set(replay.languages or self.languages.identify) - set(trained):
            raise ValueError("train.replay.share: no language is left; name some in train.replay.languages")
        return self
