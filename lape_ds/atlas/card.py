"""The atlas's README.md: a model card with front matter that the hub accepts.

After the folder's other files: every number on the card is read from one of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lape_ds.atlas.provenance import model_lines, source_lines
from lape_ds.languages import find_language
from lape_ds.markdown import INSTALL, markdown_table
from lape_ds.recipe import HubSource, Recipe

_TAGS = ["lape-ds", "language-neurons", "lape", "multilingual", "interpretability"]
_KINDS = ("identified", "random", "most_active")  # of sets in ablation.json
_FILES = {
    "neurons.safetensors": "the neuron set: per language int32 `[n, 2]` of (layer, index), and each neuron's confidence",
    "counts/": "per language how often each neuron was active, in 16 buckets of documents; additive, to be selected from anew",
    "languages.json": "the table below, with the neurons in every layer",
    "layers.png": "the same as a picture",
    "stability.json, agreement.png": "agreement at doubling amounts of text; a bootstrap over documents",
    "overlap-languages.json, .png": "which languages share neurons: Jaccard similarity",
    "overlap-families.json, .png": "the same of families",
    "ablation.json, ablation.png": "bits per byte with each language's neurons switched off, and with controls of the same size",
    "recipe.yaml, run.json": "every setting; versions, commit and machine",
}


@dataclass(frozen=True)
class Facts:
    """What the card is written from: the contents of the folder's JSON files, and whether it has counts."""

    languages: Mapping[str, Any]
    stability: Mapping[str, Any]
    overlap: Mapping[str, Any]
    ablation: Mapping[str, Any]
    run: Mapping[str, Any]
    has_counts: bool

    @classmethod
    def of(cls, folder: Path) -> Facts:
        """Reads them."""
        names = ("languages", "stability", "overlap-languages", "ablation", "run")
        contents = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names]
        return cls(*contents, has_counts=(folder / "counts").is_dir())


def write_card(folder: Path, recipe: Recipe) -> str:
    """The card of the folder's other files, Markdown.

    Args:
        folder: The atlas, but for its card.
        recipe: As the folder's recipe.yaml has it.
    """
    facts = Facts.of(folder)
    parts = [
        _front_matter(recipe, facts),
        _opening(recipe, facts),
        _contents(facts),
        _languages(facts),
        _proof(facts),
        _how_made(recipe, facts),
        _how_to_use(facts),
        _texts(recipe, facts),
        _limits(recipe, facts),
        _citation(recipe),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _front_matter(recipe: Recipe, facts: Facts) -> list[str]:
    codes = [find_language(row["code"]) for row in facts.languages["languages"]]
    sources = [recipe.corpus.source_of(language.code) for language in codes]
    datasets = [source.dataset for source in sources if isinstance(source, HubSource)]
    metadata: dict[str, Any] = {
        "language": list(dict.fromkeys(language.iso639_1 or language.iso639_3 for language in codes)),
        "library_name": "lape-ds",
        "tags": _TAGS,
    }
    if recipe.atlas.license is not None:
        metadata["license"] = recipe.atlas.license
    if facts.run["model"]["hub_id"] is not None:
        metadata["base_model"] = facts.run["model"]["hub_id"]
    if datasets:
        metadata["datasets"] = list(dict.fromkeys(datasets))
    # A very long line: the hub's own reader of front matter is not asked to join folded ones.
    return [
        "---",
        yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=10_000).rstrip(),
        "---",
    ]


def _opening(recipe: Recipe, facts: Facts) -> list[str]:
    found, summary = facts.languages, facts.languages["summary"]
    hub_id = facts.run["model"]["hub_id"]
    model = hub_id or found["model_id"]
    experts = f" in {found['experts_per_layer']} experts" if found["experts_per_layer"] > 1 else ""
    none = summary["languages_without_neurons"]
    return [
        f"# Language neurons of {hub_id or recipe.name}: {summary['languages']} languages",
        "",
        f"Which of the {summary['all_neurons']:,} feed-forward neurons of `{model}` ({found['num_layers']} layers × "
        f"{found['neurons_per_layer']:,}{experts}) work for one language more than for the others: "
        f"{summary['distinct_neurons']:,} of them ({_percent(summary['distinct_share'])}) belong to at least one of "
        f"{summary['languages']} languages"
        + (f"; {none} of the languages have none." if none else ", and every language has some."),
        "",
        "A *neuron* (layer, index) is row `index` of `gate_proj` and `up_proj` and column `index` of `down_proj` in that layer. "
        "No weights are in this folder.",
        "",
        "![neurons of every language in every layer](layers.png)",
    ]


def _contents(facts: Facts) -> list[str]:
    rows = [[name, what] for name, what in _FILES.items() if facts.has_counts or name != "counts/"]
    return ["## What is here", "", markdown_table(["file", "content"], rows, num_left=2)]


def _languages(facts: Facts) -> list[str]:
    resampled = facts.stability["num_resamples"]
    headings = ["language", "code", "family", "neurons", "share of all", "its own", "tokens", "agreement"]
    rows = [
        [
            row["name"],
            row["code"],
            row["family"],
            f"{row['neurons']:,}",
            _percent(row["share"]),
            f"{row['own']:,}",
            f"{row['tokens']:,}",
            _two_digits(row["agreement"]),
            _two_digits(row["confidence"]),
        ]
        for row in facts.languages["languages"]
    ]
    confidence, mean_confidence = "", ""
    if resampled:
        headings.append("confidence")
        confidence = (
            f" *Confidence*: the mean share of {resampled} bootstrap resamples of the documents in which a neuron of the "
            "language is chosen again."
        )
        mean_confidence = (
            f", a mean confidence of {_two_digits(facts.languages['summary']['mean_confidence'])}"
        )
    summary = facts.languages["summary"]
    within, between = facts.overlap["mean_within_families"], facts.overlap["mean_between_families"]
    return [
        "## The languages",
        "",
        "*Its own*: neurons that no other language has. *Tokens*: of text, without those that mark its beginning and end. "
        "*Agreement*: Jaccard similarity of the sets from half and from all of the text; near 1, more text would change little."
        f"{confidence} Over all languages: a median of {summary['median_neurons']:g} neurons, a median agreement of "
        f"{_two_digits(summary['median_agreement'])}{mean_confidence}.",
        "",
        markdown_table(headings, [row[: len(headings)] for row in rows], num_left=3),
        "",
        f"Two languages of one family share {_three_digits(within)} of their neurons in the mean (Jaccard), two of different "
        f"families {_three_digits(between)}.",
        "",
        f"![{'agreement and confidence' if resampled else 'agreement'}](agreement.png)",
        "",
        "![shared neurons of languages](overlap-languages.png)",
        "",
        "![shared neurons of families](overlap-families.png)",
    ]


def _proof(facts: Facts) -> list[str]:
    measured = facts.ablation
    scores, above = measured["specificity"], measured["specificity_above"]
    identified = scores["identified"]
    rows = []
    for code, one in identified["languages"].items():
        base = measured["languages"][code]["base_bits_per_byte"]
        kinds = [scores[kind]["languages"][code] for kind in _KINDS]
        rows.append(
            [code, f"{base:.3f}", _change(one["own"]), _change(one["others"]), *map(_estimate, kinds)]
        )
    overall = ["all", "", "", "", *(_estimate(scores[kind]["overall"]) for kind in _KINDS)]
    headings = ["language", "base", "own text", "others' text", "specificity", "random", "most active"]
    num_random = len({one["seed"] for one in measured["sets"] if one["kind"] == "random"})
    return [
        "## Do these neurons matter?",
        "",
        f"The neurons of {len(rows)} languages were switched off, one language at a time, and the held-out text of "
        f"{len(measured['languages'])} languages was measured: change in bits per byte, + is worse. *Specificity*: what the "
        "language's own text loses less what the others lose in the mean, ± half of its 95 % interval; beside it that of "
        f"{num_random} random sets of the same size in every layer (their mean) and of the neurons that are most active on the "
        "language's text.",
        "",
        markdown_table(headings, [*rows, overall]),
        "",
        "Specificity above the controls': "
        + "; ".join(
            f"{name} {_estimate(above[kind]['overall'])} ({_verdict(above[kind]['overall'])})"
            for kind, name in (("random", "random"), ("most_active", "most active"))
        )
        + f". The own text loses most of all texts for {identified['own_text_loses_most']} of {len(rows)} languages.",
        "",
        "![bits per byte with each language's neurons off](ablation.png)",
    ]


def _change(bits: float) -> str:
    return f"{bits:+.4f}"


def _estimate(one: Mapping[str, float | None]) -> str:
    """A score and half of its interval, as ablation.json has it."""
    value, half_width = one["value"], one["half_width"]
    assert value is not None
    return _change(value) + (f" ± {half_width:.4f}" if half_width is not None else "")


def _verdict(one: Mapping[str, float | None]) -> str:
    value, half_width = one["value"], one["half_width"]
    assert value is not None
    return "shown" if half_width is not None and value > half_width else "not shown"


def _how_made(recipe: Recipe, facts: Facts) -> list[str]:
    found, run = facts.languages, facts.run
    knobs = found["knobs"]
    selection = ", ".join(
        f"{name} {knobs[name]}"
        for name in ("top_rate", "filter_rate", "activation_bar_ratio")
        if name in knobs
    )
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
    return [
        "## How it was made",
        "",
        f"- `lape-ds atlas` with the recipe `{recipe.name}` ([recipe.yaml](recipe.yaml)), {run['date'][:10]}"
        + (f", commit `{run['commit']}`" if run["commit"] else ""),
        f"- Selection: `{found['method']}` ({selection}); context length {knobs['context_length']:,}, {knobs['dtype']}",
        f"- Text: {found['summary']['tokens']:,} tokens in all, as the table says by language",
        f"- Model: `{found['model_id']}`, fingerprint of its weights `{found['model_fingerprint']}`",
        *(f"- {line}" for line in model_lines(recipe, run["model"])),
        f"- Versions: {versions}",
    ]


def _how_to_use(facts: Facts) -> list[str]:
    rows = facts.languages["languages"]
    code = max(rows, key=lambda row: row["neurons"])["code"]
    return [
        "## How to use it",
        "",
        INSTALL,
        "",
        "```python",
        "from lape_ds.neurons.neuron_set import NeuronSet",
        "",
        f'neurons = NeuronSet.load("neurons.safetensors").neurons("{code}")  # int32 [n, 2] of (layer, index)',
        "```",
        "",
        "```bash",
        "lape-ds neurons show neurons.safetensors",
        "# train one language's neurons and nothing else",
        f"lape-ds train RECIPE train.neurons=neurons.safetensors languages.target={code}",
        *(
            [
                "# other knobs, from the counts; needs neither model nor text",
                "lape-ds neurons select recipe.yaml counts other.safetensors identify.top_rate=0.01",
            ]
            if facts.has_counts
            else []
        ),
        "```",
    ]


def _texts(recipe: Recipe, facts: Facts) -> list[str]:
    license = recipe.atlas.license
    return [
        "## Texts and licences",
        "",
        f"- This folder: {license}" if license else "- This folder: no licence has been stated",
        *(f"- {line}" for line in source_lines(recipe, facts.run["commits"])),
        "- No text is in this folder, only sums over it.",
    ]


def _limits(recipe: Recipe, facts: Facts) -> list[str]:
    lines = [
        "- Selection compares languages: with other languages beside it, a language has other neurons.",
        "- Counts depend on the model's weights, the context length and the texts; another kind of text gives other neurons.",
        "- Neurons may follow a script or a kind of text rather than a language, and may do more than one thing.",
    ]
    if recipe.model.create is not None:
        lines.append(
            "- The model is a tiny one, made for this atlas from CLDR records: the atlas shows how one is made, and is no "
            "evidence about large models."
        )
    if facts.languages["summary"]["languages_without_neurons"]:
        without = [row["name"] for row in facts.languages["languages"] if not row["neurons"]]
        lines.append(f"- Without a neuron under these knobs: {', '.join(without)}.")
    return ["## Limits", "", *lines]


def _citation(recipe: Recipe) -> list[str]:
    return [
        "## Citation",
        "",
        "The method: T. Tang et al., *Language-Specific Neurons: The Key to Multilingual Capabilities in Large Language Models* "
        "(arXiv 2402.16438); D. Gurgurov, J. van Genabith, S. Ostermann, *Sparse Subnetwork Enhancement for Underrepresented "
        "Languages in Large Language Models* (arXiv 2510.13580). Made with lape-ds.",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _two_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _three_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
