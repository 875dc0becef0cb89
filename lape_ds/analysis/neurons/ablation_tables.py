"""An ablation in figures: lines for a terminal, JSON for machines.

Beside the picture (ablation_pictures.py); the scores are those of specificity.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from lape_ds.analysis.neurons.overlap import by_family, set_families
from lape_ds.analysis.neurons.specificity import CONTROLS, NUM_RESAMPLES, Estimate, Specificity
from lape_ds.evaluation.comparing.differences import MIN_DOCUMENTS
from lape_ds.identification.ablation import Ablation
from lape_ds.identification.ablation_rows import KINDS, Kind

_WIDTH = 80  # of a terminal
_METHODS = {
    "lape": "LAPE",
    "family_lape": "family LAPE",
    "mean_activation": "mean activation",
    "import": "imported",
}
_HEADINGS = ("off", "neurons", "base", "own", "others")


def kind_name(ablation: Ablation, kind: Kind) -> str:
    """What people call a kind of set."""
    if kind != "identified":
        return kind.replace("_", " ")
    method = ablation.neuron_set.method
    return _METHODS.get(method, method)


def families_of(ablation: Ablation) -> dict[str, str]:
    """Family by language, relatives beside each other."""
    families = dict(zip(ablation.languages, set_families(ablation.neuron_set), strict=True))
    return {code: families[code] for code in by_family(families)}


def short_names(codes: Sequence[str]) -> list[str]:
    """Codes without the script, but where two would be one."""
    languages = Counter(code.partition("_")[0] for code in codes)
    return [code.partition("_")[0] if languages[code.partition("_")[0]] == 1 else code for code in codes]


def signed(bits: float, digits: int = 4) -> str:
    """Bits per byte with a sign, as short as it is exact: +.0123, +1.234."""
    if abs(bits) >= 1:
        return f"{bits:+.{digits - 1}f}"
    return f"{bits:+.{digits}f}".replace("0.", ".", 1)


def lines(ablation: Ablation, scores: Specificity) -> Iterator[str]:
    """For a terminal of 80 columns: the matrix of few languages, the summary, what is shown by it."""
    tokens = sum(ablation.num_tokens.values())
    yield f"{ablation.neuron_set.model_id}:"
    yield f"{len(ablation.languages)} languages, {tokens:,} held-out tokens; bits per byte, + is worse"
    matrix = list(_matrix(ablation, scores))
    if max(map(len, matrix)) <= _WIDTH:
        yield ""
        yield from matrix
    yield ""
    yield from _summary(ablation, scores)
    yield "own, others: change of its own text, and mean change of the others', with a"
    yield "language's neurons off; then specificity, own less others, ± half of its 95 %"
    yield f"interval; *: that of {kind_name(ablation, 'identified')} is above it (interval of the difference)"
    yield from _notes(ablation, scores)
    yield ""
    yield from _verdicts(ablation, scores)


def _notes(ablation: Ablation, scores: Specificity) -> Iterator[str]:
    """What is not known, or not there."""
    estimates = [one for by_language in scores.by_language.values() for one in by_language.values()]
    if any(one.half_width is None for one in (*estimates, *scores.overall.values())):
        yield "±?: no interval, since there are too few documents or languages to tell"
    if scores.too_few:
        yield f"fewer than {MIN_DOCUMENTS} held-out documents, so no interval and in no mean: {', '.join(scores.too_few)}"
    without = [code for code in ablation.languages if code not in ablation.row_languages]
    if without:
        yield f"without neurons, so measured only: {', '.join(without)}"


def _verdicts(ablation: Ablation, scores: Specificity) -> Iterator[str]:
    tested = kind_name(ablation, "identified")
    for control in CONTROLS:
        over = scores.overall_over[control]
        verdict = {True: "above", False: "not shown to be above"}[over.is_positive]
        yield (f"{tested} is {verdict} {kind_name(ablation, control)}: specificity {told(over)} more")
    yield f"own text loses most, of {len(ablation.row_languages)} rows: " + ", ".join(
        f"{scores.hit_hardest(kind)} ({kind_name(ablation, kind)})" for kind in KINDS
    )


def _matrix(ablation: Ablation, scores: Specificity) -> Iterator[str]:
    codes = list(families_of(ablation))
    names = short_names(codes)
    width = max(7, *(len(name) + 1 for name in names))
    yield f"{'off':8}" + "".join(f"{name:>{width}}" for name in names)
    for code in codes:
        if code in ablation.row_languages:
            changes = scores.changes["identified"][code]
            yield f"{code:8}" + "".join(f"{signed(changes[other]):>{width}}" for other in codes)


def _summary(ablation: Ablation, scores: Specificity) -> Iterator[str]:
    names = [kind_name(ablation, kind) for kind in KINDS]
    yield _summary_line(_HEADINGS, names)
    for code in families_of(ablation):
        figures = [code, f"{ablation.neuron_set.num_neurons(code):,}", f"{ablation.base_bits(code):.3f}"]
        if code not in ablation.row_languages:
            yield _summary_line([*figures, "", ""], [])
            continue
        figures += [signed(scores.own("identified", code)), signed(scores.others("identified", code))]
        estimates = [told(scores.by_language[kind][code]) for kind in KINDS]
        stars = ["", *("*" if scores.over[kind][code].is_positive else "" for kind in CONTROLS)]
        yield _summary_line(figures, estimates, stars)
    means = (
        fmean(measure("identified", code) for code in scores.averaged)
        for measure in (scores.own, scores.others)
    )
    stars = ["", *("*" if scores.overall_over[kind].is_positive else "" for kind in CONTROLS)]
    yield _summary_line(
        ["all", "", "", *map(signed, means)], [told(scores.overall[kind]) for kind in KINDS], stars
    )


def _summary_line(figures: Sequence[str], scores: Sequence[str], stars: Sequence[str] = ("", "", "")) -> str:
    line = "{:8}{:>7}{:>6}{:>7}{:>7}".format(*figures)
    line += "".join(f" {score:>13}{star:1}" for score, star in zip(scores, stars, strict=False))
    return line.rstrip()


def told(estimate: Estimate) -> str:
    """A score and half of its interval."""
    half = "?" if estimate.half_width is None else signed(estimate.half_width)[1:]
    return f"{signed(estimate.value)} ±{half}"


def as_json(ablation: Ablation, scores: Specificity) -> dict[str, Any]:
    """Everything but the documents' own likelihoods, which are in `rows/`."""
    found = ablation.neuron_set
    return {
        "schema_version": 1,
        "model_id": found.model_id,
        "model_fingerprint": found.model_fingerprint,
        "method": found.method,
        "knobs": dict(found.knobs),
        "settings": dict(ablation.settings),
        "unit": "bits per byte; changes are with the neurons off less without, + is worse",
        "languages": {
            code: {
                "family": family,
                "neurons": found.num_neurons(code),
                "documents": len(ablation.num_bytes[code]),
                "tokens": ablation.num_tokens[code],
                "bytes": int(ablation.num_bytes[code].sum()),
                "base_bits_per_byte": ablation.base_bits(code),
                "in_means": code not in scores.too_few,
            }
            for code, family in families_of(ablation).items()
        },
        "sets": [
            {
                "kind": row.ablated.kind,
                "language": row.ablated.language,
                "seed": row.ablated.seed,
                "neurons": len(row.ablated.neurons),
                "fingerprint": row.ablated.fingerprint,
                "row": f"rows/{row.ablated.name}.safetensors",
                "change": {code: ablation.change(row, code) for code in ablation.languages},
            }
            for row in ablation.rows
        ],
        "changes": {kind: scores.changes[kind] for kind in KINDS},
        "intervals": {"level": 0.95, "resamples": NUM_RESAMPLES, "symmetric": True},
        "specificity": {
            kind: {
                "overall": _estimate_json(scores.overall[kind]),
                "own_text_loses_most": scores.hit_hardest(kind),
                "languages": {
                    code: {
                        "own": scores.own(kind, code),
                        "others": scores.others(kind, code),
                        **_estimate_json(scores.by_language[kind][code]),
                    }
                    for code in ablation.row_languages
                },
            }
            for kind in KINDS
        },
        "specificity_above": {
            kind: {
                "overall": _estimate_json(scores.overall_over[kind]),
                "languages": {
                    code: _estimate_json(scores.over[kind][code]) for code in ablation.row_languages
                },
            }
            for kind in CONTROLS
        },
    }


def _estimate_json(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "half_width": estimate.half_width}
