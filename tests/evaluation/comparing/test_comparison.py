"""What a comparison says of folders of results: rows, means, verdicts, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lape_ds.errors import UserError
from lape_ds.evaluation.comparing.comparison import Comparison, compare
from lape_ds.evaluation.comparing.statistics import mcnemar
from lape_ds.evaluation.comparing.tables import markdown
from lape_ds.evaluation.results import Score
from tests.evaluation.comparing.written import SETTINGS, answers, change_result, write_task


def compared(output: Path, *others: str) -> Comparison:
    folders = {label: output / label for label in ("base", *(others or ("run",)))}
    return compare(folders, num_resamples=999)


def bits(num: int, per_byte: float, *, seed: int = 0) -> list[tuple[float, int]]:
    """Log-likelihood in nats and bytes of each document; the bytes are the same for every seed."""
    sizes = np.random.default_rng(9).integers(50, 400, size=num)
    nats = -sizes * np.random.default_rng(seed).normal(per_byte * np.log(2), 0.05, size=num)
    return list(zip(nats.tolist(), sizes.tolist(), strict=True))


def write_bits(folder: Path, per_byte: float, **changes: Any) -> None:
    options = {"metric": "bits_per_byte", "direction": "lower", "random_baseline": None} | changes
    write_task(folder, bits(60, per_byte, seed=round(100 * per_byte)), title="heldout", **options)


def test_a_row_has_the_difference_the_exact_p_and_the_documents_behind_it(tmp_path: Path):
    right = answers(200, right=0.5, seed=0)
    better = [1.0 if number % 5 == 0 else value for number, value in enumerate(right)]
    write_task(tmp_path / "base", right)
    write_task(tmp_path / "run", better)
    found = compared(tmp_path)
    (row,) = found.tasks
    one = row.models["run"]
    gained = int(sum(better) - sum(right))
    assert (one.estimate.gained, one.estimate.lost) == (gained, 0)
    assert one.estimate.difference == pytest.approx(gained / 200)
    assert one.estimate.p == one.p_holm == mcnemar(gained, 0)
    assert (row.base, one.verdict) == (sum(right) / 200, "better")
    assert found.means == []  # one task is its own mean
    told = found.settings[row.name]
    assert (told["dtype"], told["metadata"], told["versions"]) == (
        "float32",
        {"language": "mlt_Latn"},
        VERSIONS,
    )
    assert "model_fingerprint" not in told
    assert found.model_settings["run"] == {"model_fingerprint": "ab", "tokenizer_sha256": "cd"}


def test_verdicts_know_the_direction_and_holm_the_whole_table(tmp_path: Path):
    for label, per_byte in (("base", 1.2), ("up", 1.3), ("down", 1.1)):
        write_bits(tmp_path / label, per_byte)
        write_task(tmp_path / label, answers(100, right=0.5, seed=0))
    found = compared(tmp_path, "up", "down")
    topic, heldout = found.tasks[1], found.tasks[0]
    assert [one.verdict for one in heldout.models.values()] == ["worse", "better"]
    assert {one.verdict for one in topic.models.values()} == {"no difference shown"}
    smallest = min(one.estimate.p or 1 for one in heldout.models.values())
    assert min(one.p_holm or 1 for one in heldout.models.values()) == pytest.approx(4 * smallest)


def test_means_are_rescaled_by_chance_and_weigh_languages_alike(tmp_path: Path):
    right = {"base": (0.5, 0.75, 0.5), "run": (0.75, 0.75, 0.5)}
    for label, (first, second, third) in right.items():
        exact = {share: [1.0] * round(40 * share) + [0.0] * round(40 * (1 - share)) for share in (0.5, 0.75)}
        write_task(tmp_path / label, exact[first], title="topic", random_baseline=0.25)
        write_task(tmp_path / label, exact[second], title="piqa", random_baseline=0.5)
        write_task(tmp_path / label, exact[third], title="topic", language="kat_Geor", random_baseline=0.25)
    found = compared(tmp_path)
    means = {row.name: row for row in found.means}
    assert list(means) == ["mean accuracy, mlt_Latn", "mean accuracy, all"]
    maltese, everything = means.values()
    # (0.5 − 0.25) / 0.75 = 1/3 and (0.75 − 0.5) / 0.5 = 1/2; Georgian has 1/3 and no second task.
    assert maltese.base == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert maltese.models["run"].estimate.value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert everything.base == pytest.approx((5 / 12 + 1 / 3) / 2)
    assert everything.models["run"].estimate.difference == pytest.approx(1 / 6 / 2)
    assert (len(maltese.tasks), len(everything.tasks)) == (2, 3)


def test_means_are_of_one_suite_each_so_that_gain_and_loss_do_not_cancel(tmp_path: Path):
    half, more, less = ([1.0] * num + [0.0] * (40 - num) for num in (20, 30, 10))
    for label, gained, lost in (("base", half, half), ("run", more, less)):
        for title in ("topic", "piqa"):
            write_task(tmp_path / label, gained, title=title, suites=["trained", "both"])
            write_task(tmp_path / label, lost, title=title, language="kat_Geor", suites=["kept", "both"])
        # Measured for a suite, but not of every model.
        suites = ["trained"] if label == "base" else ["kept"]
        write_task(tmp_path / label, half, title="alone", suites=suites)
    found = compared(tmp_path)
    means = {row.name: row.models["run"].estimate.difference for row in found.means}
    assert means == pytest.approx(
        {
            "mean accuracy, both, kat_Geor": -1 / 3,
            "mean accuracy, both, mlt_Latn": 1 / 3,
            "mean accuracy, both, all": 0,
            "mean accuracy, kept, kat_Geor": -1 / 3,
            "mean accuracy, trained, mlt_Latn": 1 / 3,
        }
    )
    assert [row.suite for row in found.means] == ["both"] * 3 + ["kept", "trained"]
    text = markdown(found, command="lape-ds compare")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## Means over tasks of {suite}" for suite in ("both", "kept", "trained")
    ]


def test_bits_per_byte_and_chrf_have_means_of_their_own(tmp_path: Path):
    pairs = [(f"il-kelb numru {n} jiġri", f"il-kelb numru {n} jorqod") for n in range(12)]
    for label in ("base", "run"):
        for language in ("mlt_Latn", "kat_Geor"):
            write_bits(tmp_path / label, 1.2, language=language)
            write_task(tmp_path / label, answers(20, right=0.5, seed=1), language=language)
            write_task(
                tmp_path / label,
                pairs,
                title="flores",
                language=language,
                metric="chrf++",
                random_baseline=None,
            )
    found = compared(tmp_path)
    assert [row.name for row in found.means] == [
        f"mean {kind}, all" for kind in ("accuracy", "bits_per_byte", "chrf++")
    ]
    assert [row.direction for row in found.means] == ["higher", "lower", "higher"]
    assert found.means[1].base == pytest.approx(found.tasks[2].base)


@pytest.mark.parametrize(
    ("values", "changes", "reason"),
    [
        ([(1, 0), (1, 1)] * 10, {"metric": "mcc"}, "scored over all documents at once"),
        ([1.0] * 9, {}, "fewer than 10 documents"),
        ([1.0, 0.0] * 10, {"scores": {"acc": Score(0.7, None)}}, "not the mean of its documents"),
    ],
)
def test_a_value_that_cannot_be_resampled_is_shown_and_not_tested(
    tmp_path: Path, values: list, changes: dict[str, Any], reason: str
):
    for label in ("base", "run"):
        write_task(tmp_path / label, values, **changes)
        write_bits(tmp_path / label, 1.2)
    found = compared(tmp_path)
    one = found.tasks[1].models["run"]
    assert (one.estimate.reason, one.estimate.p, one.verdict) == (reason, None, "not tested")
    assert found.tasks[0].models["run"].p_holm == 1.0


def test_a_filter_is_read_by_its_name_and_else_the_first(tmp_path: Path):
    for label, strict, flexible in (("base", [0.0] * 20, [1.0] * 20), ("run", [1.0] * 20, [1.0] * 20)):
        write_task(tmp_path / label, strict, metric="exact_match")
        path = tmp_path / label / "samples" / "topic_mlt_Latn.jsonl"
        lines = path.read_text(encoding="utf-8")
        first = lines.replace('"filter": "none"', '"filter": "strict"')
        second = lines.replace('"filter": "none"', '"filter": "flexible"')
        second = re.sub(r'"exact_match": [\d.]+', f'"exact_match": {flexible[0]}', second)
        path.write_text(first + second, encoding="utf-8")
    assert compared(tmp_path).tasks[0].models["run"].estimate.difference == 1.0
    for label in ("base", "run"):
        scores = {"exact_match,flexible": {"value": 1.0, "stderr": None}}
        change_result(tmp_path / label, metric="exact_match,flexible", scores=scores)
    assert compared(tmp_path).tasks[0].models["run"].estimate.difference == 0.0


def test_tasks_of_one_model_are_listed_and_left_out(tmp_path: Path):
    for label in ("base", "run", "other"):
        write_task(tmp_path / label, answers(20, right=0.5, seed=0))
    write_bits(tmp_path / "run", 1.2)
    found = compared(tmp_path, "run", "other")
    assert [row.title for row in found.tasks] == ["topic"]
    assert found.left_out == {"heldout_mlt_Latn": ["run"]}
    for path in (tmp_path / "run").glob("topic*"):
        path.unlink()
    with pytest.raises(UserError, match=r"no task was measured for all of base, run: .*one suite"):
        compared(tmp_path)


def changed_result(**changes: Any) -> Callable[[Path], object]:
    return partial(change_result, **changes)


def edited_samples(old: str, new: str, count: int = 1) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (path,) = (folder / "samples").iterdir()
        text = path.read_text(encoding="utf-8")
        assert re.search(old, text)
        path.write_text(re.sub(old, new, text, count=count), encoding="utf-8")

    return change


VERSIONS: dict[str, str] = SETTINGS["versions"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (changed_result(settings=SETTINGS | {"limit": 64}), "limit none against 64"),
        (changed_result(settings=SETTINGS | {"dtype": "bfloat16"}), "dtype float32 against bfloat16"),
        (changed_result(settings=SETTINGS | {"max_length": 2048}), "max_length 4096 against 2048"),
        (changed_result(settings=SETTINGS | {"num_fewshot": 5}), "num_fewshot 0 against 5"),
        (changed_result(settings=SETTINGS | {"backend": "vllm"}), "backend not told against vllm"),
        (
            changed_result(settings=SETTINGS | {"versions": VERSIONS | {"lm-eval": "0.5.0"}}),
            "versions.lm-eval 0.4.13 against 0.5.0",
        ),
        (changed_result(settings=SETTINGS | {"documents_sha256": "gh"}), "documents_sha256 ef against gh"),
        (
            changed_result(settings=SETTINGS | {"metadata": {"language": "x"}}),
            "metadata.language mlt_Latn against x",
        ),
        (changed_result(requests_sha256="f" * 64), f"requests_sha256 .* against {'f' * 39}…"),
        (changed_result(num_documents=21), "num_documents 20 against 21"),
        (changed_result(random_baseline=0.5), "random_baseline 0.25 against 0.5"),
        (edited_samples('"doc_hash": "[^"]+"', '"doc_hash": "x"'), "doc_hash of document 1 .* against x"),
        (
            edited_samples('"prompt_hash": "[^"]+"', '"prompt_hash": "x"'),
            "prompt_hash of document 1 .* against x",
        ),
        (
            edited_samples('"target_hash": "[^"]+"', '"target_hash": "x"', 0),
            "target_hash of document 1 .* against x",
        ),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "change",
)
def test_what_was_not_measured_alike_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[Path], object], what: str
):
    for label in ("base", "same", "run"):
        write_task(tmp_path / label, answers(20, right=0.5, seed=0))
    change(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        compared(tmp_path, "same", "run")
    said = str(caught.value)
    assert re.search(
        rf"not measured alike: topic_mlt_Latn of base and run: {what}.*`lape-ds eval` again", said
    ), said
    assert "\n" not in said


def test_of_many_differences_the_number_is_told(tmp_path: Path):
    for label, dtype in (("base", "float32"), ("run", "bfloat16")):
        for language in ("mlt_Latn", "kat_Geor", "eng_Latn"):
            write_task(
                tmp_path / label,
                answers(20, right=0.5, seed=0),
                language=language,
                settings=SETTINGS | {"dtype": dtype},
            )
    with pytest.raises(UserError, match=r"dtype float32 against bfloat16 \(and 2 more\)"):
        compared(tmp_path)


def test_the_same_text_may_lie_elsewhere(tmp_path: Path):
    elsewhere = {"metadata": {"language": "mlt_Latn", "path": "/other/mlt_Latn.jsonl"}}
    write_task(tmp_path / "base", answers(20, right=0.5, seed=0))
    write_task(tmp_path / "run", answers(20, right=0.5, seed=0), settings=SETTINGS | elsewhere)
    assert len(compared(tmp_path).tasks) == 1


def test_models_and_tokenizers_may_differ(tmp_path: Path):
    of_model = {
        "model_fingerprint": "1",
        "pack_fingerprint": "2",
        "config_sha256": "3",
        "tokenizer_sha256": "4",
    }
    write_task(tmp_path / "base", answers(20, right=0.5, seed=0))
    write_task(tmp_path / "run", answers(20, right=0.5, seed=0), settings=SETTINGS | of_model)
    assert compared(tmp_path).model_settings["run"] == of_model


def cut_off(folder: Path) -> None:
    (path,) = (folder / "samples").iterdir()
    path.write_bytes(path.read_bytes()[:-30])


def shortened(folder: Path) -> None:
    (path,) = (folder / "samples").iterdir()
    path.write_text(
        "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-2]), encoding="utf-8"
    )


def doubled(folder: Path) -> None:
    (path,) = (folder / "samples").iterdir()
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], lines[0]]), encoding="utf-8")


def removed(folder: Path) -> None:
    (path,) = (folder / "samples").iterdir()
    path.unlink()


def scrambled(folder: Path) -> None:
    (path,) = (folder / "samples").iterdir()
    path.write_bytes(b"\xff\xfe" + path.read_bytes())


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (cut_off, r"jsonl:20 is damaged \(cut off, or no sample\)"),
        (shortened, "jsonl has 18 samples of 18 documents, the result 20"),
        (doubled, "jsonl has 20 samples of 19 documents, the result 20"),
        (removed, "jsonl is missing"),
        (scrambled, r"jsonl.* is damaged"),
        (edited_samples('"acc": [01].0', '"acc_norm": 1.0'), r"jsonl:1 is damaged \(no 'acc'\)"),
        (edited_samples(r"^\{.*\n", "[]\n"), r"jsonl:1 is damaged \(cut off, or no sample\)"),
    ],
)
def test_damaged_samples_are_refused_in_one_line(tmp_path: Path, damage: Callable[[Path], object], what: str):
    for label in ("base", "run"):
        write_task(tmp_path / label, answers(20, right=0.5, seed=0))
    damage(tmp_path / "run")
    with pytest.raises(
        UserError, match=rf"{what}.*delete .*run/topic_mlt_Latn\.json and run `lape-ds eval`"
    ) as caught:
        compared(tmp_path)
    assert "\n" not in str(caught.value)


def test_many_tasks_are_read_by_several_processes_to_the_same_end(tmp_path: Path):
    pairs = [(f"il-kelb numru {n} jiġri", f"il-kelb numru {n} jorqod") for n in range(12)]
    for label, right in (("base", 0.4), ("run", 0.8)):
        for number in range(40):
            title = f"task{number:02}"
            if number % 2:
                write_task(tmp_path / label, answers(20, right=right, seed=number), title=title)
            else:
                write_task(tmp_path / label, pairs, title=title, metric="chrf++", random_baseline=None)
    found = compared(tmp_path)
    assert [row.title for row in found.tasks] == [f"task{number:02}" for number in range(40)]
    for label in ("base", "run"):
        for path in (tmp_path / label).glob("*.json"):
            if path.stem not in ("task00_mlt_Latn", "task01_mlt_Latn"):
                path.unlink()
    few = compared(tmp_path)  # by this process
    for row, alone in zip(found.tasks, few.tasks, strict=False):
        assert row.models["run"].estimate == alone.models["run"].estimate


def test_a_damaged_file_among_many_is_one_line(tmp_path: Path):
    for label in ("base", "run"):
        for number in range(40):
            write_task(tmp_path / label, answers(12, right=0.5, seed=0), title=f"task{number:02}")
    (tmp_path / "run" / "samples" / "task07_mlt_Latn.jsonl").unlink()
    with pytest.raises(UserError, match=r"run/samples/task07_mlt_Latn\.jsonl is missing") as caught:
        compared(tmp_path)
    assert "\n" not in str(caught.value)
