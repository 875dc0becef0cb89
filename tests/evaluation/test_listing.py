"""What `lape-ds suites` shows."""

from __future__ import annotations

from lape_ds.evaluation.listing import list_languages, list_suites, list_tasks
from lape_ds.evaluation.suites import load_suite


def test_suites_with_their_size_and_whom_they_are_for():
    rows = [line.split() for line in list_suites()]
    assert ["general", "8", "eng_Latn"] in rows
    assert ["multilingual-retention", "23", "untrained"] in rows


def test_tasks_with_metric_examples_chance_and_number_of_languages():
    rows = {line.split()[0]: line.split()[1:] for line in list_tasks(load_suite("monolingual"))}
    assert rows["belebele"] == ["acc", "↑", "5", "0.250", "123", "belebele_{belebele}"]
    assert rows["heldout_bits_per_byte"] == ["bits_per_byte", "↓", "0", "–", "396", "heldout_bits_per_byte"]


def test_what_there_is_in_a_language_and_what_is_left_out():
    lines = list(list_languages(load_suite("monolingual"), ["cy", "Welsh", "en"]))
    assert lines[0].startswith(
        "Welsh (cym_Latn), 8 tasks: heldout_bits_per_byte, flores_bits_per_byte, flores_from_english"
    )
    assert lines[1].startswith("  left out, no Welsh in it: belebele, global_piqa_parallel")
    assert lines[2].startswith("English (eng_Latn), ")
    assert (
        "  left out, English is the other side: flores_from_english, flores_to_english, opus_from_english, opus_to_english"
        in lines
    )
    assert next(iter(list_languages(load_suite("general"), ["cy"]))) == "Welsh (cym_Latn), 0 tasks: none"
