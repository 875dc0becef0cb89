"""A language pack's model card, for the hub: what trained, on which data, by which recipe, with what result, how to use it.

After training and evaluation, from what their folders hold; nothing stands in it that they do not say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from lape_ds.errors import UserError
from lape_ds.evaluation.results import TaskResult, read_result
from lape_ds.languages import find_language
from lape_ds.markdown import INSTALL, markdown_table
from lape_ds.model.folder import is_hub_id
from lape_ds.recipe import Recipe, load_recipe
from lape_ds.runlog import readable_bytes, readable_count
from lape_ds.subnetwork.pack import Pack
from lape_ds.training.metrics import read_metrics
from lape_ds.training.run_folder import heldout_by_step, read_facts
from lape_ds.writing import write_text

_MARKER = "<!-- made by lape-ds pack card -->"  # by it a later command knows a card that it may replace


def write_pack_card(
    path: Path, target: Path, *, run_dir: Path | None = None, licence: str | None = None
) -> None:
    """Writes the card of a pack.

    Args:
        path: The pack.
        target: The card; an earlier one is replaced, any other file refused.
        run_dir: The run it was made of; None: the folder that it lies in, if that is one. Without it the card has neither data,
            recipe nor results.
        licence: As the hub names it; None: what the base folder's own card says, if it says it.

    Raises:
        UserError: No pack or run there, a pack of another run, or a README that is no such card.
    """
    pack = Pack.load(path)
    if target.exists() and _MARKER not in target.read_text(encoding="utf-8"):
        raise UserError(
            f"{target} is not a card of `lape-ds pack card` and is left as it is; name another with --output"
        )
    if run_dir is None and (path.parent / "run.json").is_file():
        run_dir = path.parent
    if run_dir is not None:
        _check_is_of_run(pack, run_dir)
    write_text(target, pack_card(pack, path, run_dir=run_dir, licence=licence or _base_licence(pack)))


def pack_card(pack: Pack, path: Path, *, run_dir: Path | None, licence: str | None) -> str:
    """The card's text, Markdown with front matter.

    Args:
        pack: Of `path`.
        path: Its file.
        run_dir: The run that it was made of, where it is known.
        licence: Where it is known.
    """
    names = ", ".join(find_language(code).name for code in pack.languages) or "A language"
    on_hub = is_hub_id(pack.base_model)
    base = pack.base_model if on_hub else Path(pack.base_model).name
    front: dict[str, Any] = {"base_model": base, "base_model_relation": "adapter"} if on_hub else {}
    front |= {"language": [_hub_code(code) for code in pack.languages]}
    front |= {} if licence is None else {"license": licence}
    front |= {"library_name": "lape-ds", "tags": ["language-pack", "language-specific-neurons"]}
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n{_MARKER}",
        f"# {names}: language pack for {base}",
        f"The feed-forward neurons of {base} that were trained for {names}, and what the base has there: put in, they make the "
        "trained model bit for bit; taken out, the base.",
        _what_trained(pack, path),
        _use(base, path.name, pack, on_hub=on_hub),
    ]
    if run_dir is not None:
        recipe = load_recipe(str(run_dir))
        sections += [_data(recipe, run_dir), *_results(recipe, run_dir, pack), _recipe(recipe)]
    else:
        sections.append(
            "It was made without the folder of its training: data, recipe and results are not known here."
        )
    terms = (
        f"{licence}."
        if licence
        else "That of the base model, whose weights it holds some of, and of its data."
    )
    return "\n\n".join([*sections, f"## Licence\n\n{terms}"]) + "\n"


def _check_is_of_run(pack: Pack, run_dir: Path) -> None:
    facts = read_facts(run_dir)
    if facts is None:
        raise UserError(
            f"{run_dir} is not the folder of a training (it has no run.json); give output_dir/train/<run>"
        )
    run = pack.origin.get("run")
    if run != run_dir.resolve().name or facts.get("model_fingerprint") != pack.base_fingerprint:
        raise UserError(
            f"the pack was not made of {run_dir}: it says run {run or 'none'} and base {pack.base_fingerprint[:16]}; give its "
            "own run with --run, or a copy of the pack elsewhere for a card without one"
        )


def _base_licence(pack: Pack) -> str | None:
    card = Path(pack.base_model) / "README.md"
    return (metadata_load(card) or {}).get("license") if card.is_file() else None


def _hub_code(code: str) -> str:
    language = find_language(code)
    return language.iso639_1 or language.iso639_3


def _what_trained(pack: Pack, path: Path) -> str:
    rows = [
        ["neurons", f"{len(pack.neurons):,}"],
        ["layers with neurons", f"{len(pack.new):,}"],
        ["weights", readable_count(pack.num_entries)],
        ["dtype", pack.dtype],
        ["file", readable_bytes(path.stat().st_size)],
        ["base's fingerprint", f"`{pack.base_fingerprint[:16]}`"],
    ]
    rows += [
        [key.replace("_", " "), _shown(value)]
        for key, value in pack.origin.items()
        if not isinstance(value, dict) and key != "composed_of"
    ]
    per_layer = ", ".join(f"{layer}: {len(pack.index(layer)):,}" for layer in pack.new)
    parts = [f"## What trained\n\n{markdown_table(['', ''], rows)}", f"Neurons by layer: {per_layer}."]
    return "\n\n".join(parts)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _use(base: str, file: str, pack: Pack, *, on_hub: bool) -> str:
    where = (
        ""
        if on_hub
        else f"The base, `{base}`, was a folder of whoever made the pack: put in for `BASE` where you have the model whose "
        f"fingerprint is `{pack.base_fingerprint[:16]}`; any other is refused.\n\n"
    )
    return f"""## How to use it

{INSTALL}

{where}```python
from transformers import AutoModelForCausalLM
from lape_ds.subnetwork.pack import Pack, language

model = AutoModelForCausalLM.from_pretrained("{base if on_hub else "BASE"}", dtype="{pack.dtype}")
with language(model, Pack.load("{file}")):
    ...  # the trained model; after the block the base again
```"""


def _data(recipe: Recipe, run_dir: Path) -> str:
    identity = (read_facts(run_dir) or {}).get("identity", {})
    rows = []
    for code in recipe.trained_languages:
        source = recipe.corpus.source_of(code).model_dump(mode="json", exclude_none=True)
        described = ", ".join(f"{key} {value}" for key, value in source.items() if value is not False)
        rows.append(
            [find_language(code).name, described, identity.get(f"text of {code}", "–").rpartition(", ")[2]]
        )
    return f"## Data\n\n{markdown_table(['language', 'source', 'packed'], rows)}"


def _recipe(recipe: Recipe) -> str:
    kept = recipe.model_dump(mode="json", include={"seed", "train"}, exclude_defaults=True)
    kept.get("train", {}).pop("neurons", None)  # a path of the machine that trained
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    return f"## Recipe\n\nWhat differs from lape-ds' defaults:\n\n```yaml\n{text}```"


def _results(recipe: Recipe, run_dir: Path, pack: Pack) -> list[str]:
    parts = []
    by_step = heldout_by_step(read_metrics(run_dir / "metrics.jsonl"))
    before, after = by_step.get(0), by_step.get(pack.origin["step"])
    if before and after:
        rows = [
            [find_language(code).name, f"{bits:.4f}", f"{after[code]:.4f}", f"{after[code] - bits:+.4f}"]
            for code, bits in before.items()
        ]
        parts.append(
            f"Held-out text of the recipe's corpus, bits per byte (lower is better), the whole run:\n\n"
            f"{markdown_table(['language', 'base', 'with the pack', 'change'], rows)}"
        )
    base, own = (_evaluated(recipe.output_dir / "eval" / name) for name in ("base", run_dir.resolve().name))
    rows = [
        [
            one.title,
            one.language,
            one.metric,
            f"{base[task].scores[one.metric].value:.4f}",
            f"{one.scores[one.metric].value:.4f}",
        ]
        for task, one in own.items()
        if task in base and one.metric in one.scores and one.metric in base[task].scores
    ]
    if rows:
        parts.append(markdown_table(["task", "language", "metric", "base", "with the pack"], rows))
    return ["## Results\n\n" + "\n\n".join(parts)] if parts else []


def _evaluated(folder: Path) -> dict[str, TaskResult]:
    found = {path.stem: read_result(folder, path.stem) for path in sorted(folder.glob("*.json"))}
    return {task: result for task, result in found.items() if result is not None}
