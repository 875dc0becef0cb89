"""`lape-ds neurons ablate`: each language's neurons are switched off, and every language's held-out text is measured.

After identification: takes the neuron set, the counts (for the control of most active neurons) and the model, and leaves the
negative log-likelihood of every document, row by row. Scores and their intervals are made of these by
analysis/neurons/specificity.py.

A language's neurons set to 0 should cost that language more than the others: so LAPE's neurons are shown to matter by Tang et
al., arXiv 2402.16438 (there by perplexity), and again by Gurgurov et al., arXiv 2510.13580. The controls have as many
neurons in every layer: random ones say what the loss of any such number costs; the most active ones, what it costs to lose
neurons that merely fire often on the language's text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lape_ds.corpora.streams import Document
from lape_ds.distributed.run_lock import take_lock
from lape_ds.errors import UserError
from lape_ds.identification.ablation_rows import BASE, AblatedSet, RowFile
from lape_ds.identification.sections import ABLATION_SECTIONS
from lape_ds.languages import find_language
from lape_ds.model.loading import fingerprint, load_model, load_skeleton, load_tokenizer, recipe_model
from lape_ds.model.loss import LanguageModelLoss
from lape_ds.model.scoring import bits_per_byte, score_documents
from lape_ds.model.shape import model_shape
from lape_ds.model.switching import switched_off
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import Recipe, check_frozen, freeze_recipe
from lape_ds.runlog import Progress, write_run_json
from lape_ds.training.inputs import activation_probabilities, prefix_token_id
from lape_ds.training.texts import corpora_to_measure, heldout_part
from lape_ds.writing import told_if_unwritable


@dataclass(frozen=True, eq=False)
class AblatedRow:
    """What a model with some neurons off makes of the text.

    Attributes:
        ablated: What was off.
        nats: Negative log-likelihood of every document by language, float64 `[documents]`.
    """

    ablated: AblatedSet
    nats: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Ablation:
    """Everything that was measured.

    Attributes:
        neuron_set: The neurons under test, of the languages that took part: each is a column, and a row where it has neurons.
        settings: What the numbers depend on beside neurons and text, JSON values.
        num_tokens: Held-out tokens by language.
        num_bytes: Bytes of every document by language, int64 `[documents]`.
        base: Nats of every document with nothing off, by language, float64 `[documents]`.
        rows: By language, then kind, then seed.
    """

    neuron_set: NeuronSet
    settings: Mapping[str, Any]
    num_tokens: Mapping[str, int]
    num_bytes: Mapping[str, Tensor]
    base: Mapping[str, Tensor]
    rows: tuple[AblatedRow, ...]

    @property
    def languages(self) -> tuple[str, ...]:
        """All that were measured."""
        return self.neuron_set.languages

    @property
    def row_languages(self) -> tuple[str, ...]:
        """Those that have neurons."""
        return tuple(code for code in self.languages if self.neuron_set.num_neurons(code))

    def base_bits(self, code: str) -> float:
        """Bits per byte of a language's text with nothing off."""
        return self._bits(self.base, code)

    def change(self, row: AblatedRow, code: str) -> float:
        """By how much a language's bits per byte are higher with the row's neurons off."""
        return self._bits(row.nats, code) - self.base_bits(code)

    def _bits(self, nats: Mapping[str, Tensor], code: str) -> float:
        return bits_per_byte(float(nats[code].sum()), int(self.num_bytes[code].sum()))


@dataclass(frozen=True, eq=False)
class _Text:
    """A language's held-out documents."""

    documents: Sequence[Document]

    @property
    def num_tokens(self) -> int:
        return sum(len(document.token_ids) for document in self.documents)

    @property
    def num_bytes(self) -> Tensor:
        return torch.tensor([document.num_bytes for document in self.documents])

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(f"{len(document.token_ids)} {document.num_bytes}\n".encode())
            digest.update(document.token_ids.numpy().tobytes())
        return digest.hexdigest()[:16]


def ablate(
    recipe: Recipe,
    *,
    languages: Sequence[str] = (),
    tokens_per_language: int | None = None,
    num_random: int = 3,
    output_dir: Path | None = None,
    neurons: Path | None = None,
) -> Ablation:
    """Measures every language's held-out text with each language's neurons off, and with controls of the same size off.

    As much held-out text, in such windows, as training measures (`train.heldout.tokens_per_language`, `train.block_length`); no
    more text is read than that needs, also of a language that is trained on all it has. Runs in one process, on the GPU if
    there is one. Stopped anywhere, the same call goes on: rows that are there are not measured again, and where all are there
    no model is loaded.

    Args:
        recipe: Whose neurons, counts, model and corpus.
        languages: Codes of those that take part, as rows and as columns; none: all of the neuron set.
        tokens_per_language: Instead of `train.heldout.tokens_per_language`.
        num_random: Random sets of each language.
        output_dir: The folder to write into; None: `<output_dir>/ablation` of the recipe.
        neurons: The neuron set; None: `train.neurons`, else what `lape-ds identify` wrote.

    Returns:
        What was measured; `rows/` in the folder has it, too.

    Raises:
        UserError: There is no neuron set, or one of another model; fewer than two languages, or no neurons; no counts; no text;
            or the folder is of another recipe, or another job is at work in it.
    """
    recipe = _with_tokens(recipe, tokens_per_language)
    folder = output_dir or recipe.output_dir / "ablation"
    check_frozen(recipe, folder, sections=ABLATION_SECTIONS)
    path = neurons or recipe.train.neurons or recipe.identify_dir / "neurons.safetensors"
    neuron_set = _neuron_set(path, languages)  # before the model, which takes long
    model_folder = recipe_model(recipe)
    skeleton = load_skeleton(model_folder)
    weights = fingerprint(model_folder)
    _check_model(neuron_set, path, skeleton, weights)
    sets = [BASE, *_sets(recipe, neuron_set, weights, num_random)]
    tokenizer = load_tokenizer(model_folder)
    texts = _heldout_texts(recipe, tokenizer, neuron_set.languages)
    longest = getattr(skeleton.config, "max_position_embeddings", None) or recipe.train.block_length
    settings = {
        "model_fingerprint": weights,
        "dtype": recipe.model.dtype,
        "attn_implementation": recipe.model.attn_implementation,
        "device": _device_name(),
        "prefix_token_id": prefix_token_id(recipe, tokenizer),
        "max_length": min(recipe.train.block_length, longest),
        "tokens_per_batch": recipe.train.heldout.tokens_per_batch,
    }
    with take_lock(folder, instead="name another folder (--output, or another output_dir)"):
        freeze_recipe(recipe, folder, sections=ABLATION_SECTIONS)
        files = [RowFile(folder / "rows" / f"{one.name}.safetensors", one, settings) for one in sets]
        base, *rows = _measure(recipe, model_folder, files, texts)
        write_run_json(folder, recipe, {"stage": "ablate", **settings})
    return Ablation(
        neuron_set=neuron_set,
        settings=settings,
        num_tokens={code: text.num_tokens for code, text in texts.items()},
        num_bytes={code: text.num_bytes for code, text in texts.items()},
        base=base,
        rows=tuple(AblatedRow(one, nats) for one, nats in zip(sets[1:], rows, strict=True)),
    )


def _with_tokens(recipe: Recipe, tokens_per_language: int | None) -> Recipe:
    """The recipe with another `train.heldout.tokens_per_language`."""
    if tokens_per_language is None:
        return recipe
    heldout = recipe.train.heldout.model_copy(update={"tokens_per_language": tokens_per_language})
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"heldout": heldout})})


def _heldout_texts(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, languages: Sequence[str]
) -> dict[str, _Text]:
    """Of every language, however much of it training takes: nothing is trained here."""
    corpora = corpora_to_measure(recipe, tokenizer, languages)
    return {code: _Text(heldout_part(recipe, corpus).documents) for code, corpus in corpora.items()}


def _neuron_set(path: Path, languages: Sequence[str]) -> NeuronSet:
    """The neuron set, of the languages asked for."""
    if not path.exists():
        raise UserError(
            f"no neuron set at {path}: run `lape-ds identify` with this recipe first, or set train.neurons"
        )
    codes = list(dict.fromkeys(find_language(code).code for code in languages))
    try:
        found = NeuronSet.load(path)
        found = found.only(*(codes or found.languages))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if len(found.languages) < 2:
        raise UserError(
            f"{path}: an ablation of {', '.join(found.languages) or 'no language'} has no others to compare with; name at "
            "least two languages"
        )
    if not any(map(found.num_neurons, found.languages)):
        raise UserError(
            f"{path}: none of the languages has a neuron; take wider knobs (identify.top_rate, filter_rate, "
            "activation_bar_ratio) and run `lape-ds identify` again"
        )
    return found


def _check_model(found: NeuronSet, path: Path, skeleton: PreTrainedModel, weights: str) -> None:
    """That the neurons are of this model."""
    shape = model_shape(skeleton)
    try:
        found.check_model(weights, num_layers=shape.num_layers, neurons_per_layer=shape.neurons_per_layer)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _sets(recipe: Recipe, neuron_set: NeuronSet, weights: str, num_random: int) -> Iterator[AblatedSet]:
    """Of every language that has neurons: these, random ones, the most active ones."""
    for code in neuron_set.languages:
        if not neuron_set.num_neurons(code):
            continue
        yield AblatedSet("identified", code, neuron_set.neurons(code))
        for seed in range(num_random):
            drawn = neuron_set.random_like(code, seed=_draw_of(code, seed))
            yield AblatedSet("random", code, drawn.neurons(code), seed)
        most_active = neuron_set.most_active_like(
            code, probs_LI=activation_probabilities(recipe, [code], weights)
        )
        yield AblatedSet("most_active", code, most_active.neurons(code))


def _draw_of(code: str, seed: int) -> int:
    """The random numbers' own seed: from the same, two languages would draw almost the same neurons."""
    return int(hashlib.sha256(f"{code} {seed}".encode()).hexdigest()[:8], 16)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device_name() -> str:
    """Of which rounding depends: small differences must not be those of two devices."""
    return torch.cuda.get_device_name() if _device().type == "cuda" else "cpu"


def _measure(
    recipe: Recipe, model_folder: Path, files: Sequence[RowFile], texts: Mapping[str, _Text]
) -> list[dict[str, Tensor]]:
    """Every row's nats by language, from files where they are there."""
    text_ids = {code: text.fingerprint for code, text in texts.items()}
    sizes = {code: text.num_tokens for code, text in texts.items()}
    rows = [file.load(text_ids) for file in files]
    done = sum(sizes[code] for row in rows for code in row)
    total = len(files) * sum(sizes.values())
    if done < total:
        _tell_other_settings(files)
        model = _load(recipe, model_folder)
        with Progress("Ablating", total=total, done=done, unit="tokens") as bar:
            for file, row in zip(files, rows, strict=True):
                missing = [code for code in texts if code not in row]
                if not missing:
                    continue
                with switched_off(model.model, file.ablated.neurons):
                    for code in missing:
                        row[code] = _score(model, texts[code], file, code)
                        bar.advance(sizes[code], note=file.ablated.name)
                with told_if_unwritable(str(file.path), kept="finished rows"):
                    file.save(row, text_ids)
    return [{code: row[code] for code in texts} for row in rows]


def _tell_other_settings(files: Sequence[RowFile]) -> None:
    """That rows are there which cannot be taken, e.g. another GPU's."""
    others = [other for file in files if (other := file.other_settings())]
    if others:
        told = ", ".join(f"{name} {there} there, {now} now" for name, (there, now) in others[0].items())
        print(f"{len(others)} of {len(files)} rows in {files[0].path.parent} are measured anew: {told}")


def _load(recipe: Recipe, folder: Path) -> LanguageModelLoss:
    model = load_model(
        folder,
        dtype=recipe.model.dtype,
        attn_implementation=recipe.model.attn_implementation,
        device=_device(),
    )
    return LanguageModelLoss(model)


def _score(model: LanguageModelLoss, text: _Text, file: RowFile, code: str) -> Tensor:
    nats = score_documents(
        model,
        text.documents,
        prefix_token_id=file.settings["prefix_token_id"],
        max_length=file.settings["max_length"],
        tokens_per_batch=file.settings["tokens_per_batch"],
    )
    if not bool(nats.isfinite().all()):
        raise UserError(
            f"text of {code} has no likelihood with {file.ablated.name} off: the model's numbers overflow in "
            f"{file.settings['dtype']}; set model.dtype=float32"
        )
    return nats
