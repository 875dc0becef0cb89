"""One row for every language of a neuron set: how many neurons it has, of how much text, and how sure they are.

Before the card, which tells them; read from the neuron set and from stability.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from lape_ds.analysis.neurons.overlap import Layers
from lape_ds.languages import find_language
from lape_ds.neurons.neuron_set import NeuronSet


def describe_languages(neuron_set: NeuronSet, stability: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `languages.json`.

    Args:
        neuron_set: As identification wrote it.
        stability: The content of stability.json, of the same languages.

    Returns:
        The set (model, method, knobs, sizes), `summary` of all languages, and under `languages` a row for each in the set's
        order: `neurons` and `share` (of all neurons of the model), `own` (that no other language has), `per_layer`, `tokens`
        that were counted, mean `confidence` of its neurons (None without neurons or without a bootstrap), and `agreement`, the
        Jaccard similarity of its sets from half and from all documents.
    """
    layers = Layers.of(neuron_set)
    rows = list(_rows(layers, stability["languages"]))
    num_all = neuron_set.num_layers * neuron_set.neurons_per_layer
    knobs = {name: value for name, value in neuron_set.knobs.items() if name not in ("tokens", "families")}
    return {
        "schema_version": 1,
        "model_id": neuron_set.model_id,
        "model_fingerprint": neuron_set.model_fingerprint,
        "method": neuron_set.method,
        "knobs": knobs,
        "num_layers": neuron_set.num_layers,
        "neurons_per_layer": neuron_set.neurons_per_layer,
        "experts_per_layer": neuron_set.experts_per_layer,
        "num_resamples": stability["num_resamples"],
        "summary": {
            "languages": len(rows),
            "languages_without_neurons": sum(row["neurons"] == 0 for row in rows),
            "distinct_neurons": layers.distinct,
            "distinct_share": layers.distinct / num_all,
            "all_neurons": num_all,
            "tokens": sum(row["tokens"] for row in rows),
            "median_neurons": median(row["neurons"] for row in rows),
            "mean_confidence": _mean([row["confidence"] for row in rows]),
            "median_agreement": median(row["agreement"] for row in rows),
        },
        "languages": rows,
    }


def _rows(layers: Layers, stability: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    found = layers.neuron_set
    for one in layers.languages:
        sure = stability[one.code]
        yield {
            "code": one.code,
            "name": find_language(one.code).name,
            "family": one.family,
            "neurons": one.total,
            "share": one.total / (found.num_layers * found.neurons_per_layer),
            "own": one.own,
            "tokens": sure["tokens"],
            "confidence": None if sure["confidence"] is None else sure["confidence"]["mean"],
            "agreement": sure["half_agreement"],
            "per_layer": list(one.per_layer),
        }


def _mean(values: Sequence[float | None]) -> float | None:
    """Over the languages that have a value."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
