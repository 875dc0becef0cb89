"""Rows in the columns of the public data sets that the suites read: made up, for nothing is downloaded in tests.

Columns are those that the harness's templates and functions read, and of our own tasks' data sets those of their cards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from datasets import Dataset, DatasetDict

NUM_ROWS = 27  # ARC shows 25 examples
# Subjects, domains and categories by which the harness picks the rows of a group's members.
MMLU_SUBJECTS = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
professional_law professional_medicine professional_psychology public_relations security_studies sociology
us_foreign_policy virology world_religions
""".split()
INCLUDE_DOMAINS = (
    "Applied Science,Arts & Humanities,Business & Commerce,Driving License,General knowledge,Health oriented education,"
    "Marine License,Medical License,Professional certification,STEM,Social Science"
).split(",")
PROX_CATEGORIES = (
    "biology,business,chemistry,computer science,economics,engineering,health,history,law,math,other,philosophy,physics,psychology"
).split(",")
SIB_CATEGORIES = "science/technology,travel,politics,sports,health,entertainment,geography".split(",")

Row = dict[str, Any]


def _options(number: int) -> Row:
    return {f"option_{letter}": f"choice {letter} {number}" for letter in "abcd"}


def _arc(number: int) -> Row:
    labels = ["A", "B", "C", "D"]
    choices = {"text": [f"answer {label}" for label in labels], "label": labels}
    return {
        "id": str(number),
        "question": f"Which {number}?",
        "choices": choices,
        "answerKey": labels[number % 4],
    }


def _hellaswag(number: int) -> Row:
    texts = {
        "ind": number,
        "activity_label": "Baking",
        "ctx_a": f"A cook {number} stirs.",
        "ctx_b": "then she",
        "ctx": "A cook",
    }
    return texts | {"endings": [f"does {ending}" for ending in range(4)], "label": str(number % 4)}


def _winogrande(number: int) -> Row:
    sentence = f"The cup {number} did not fit into the bag since _ was too big."
    return {"sentence": sentence, "option1": "the cup", "option2": "the bag", "answer": str(1 + number % 2)}


def _piqa(number: int) -> Row:
    solutions = {f"solution{choice}": f"way {choice}" for choice in range(4)}
    return {"prompt": f"To open jar {number},", "label": number % 2} | solutions


def _belebele(number: int) -> Row:
    answers = {f"mc_answer{choice}": f"answer {choice}" for choice in range(1, 5)}
    return {
        "flores_passage": f"Passage {number}.",
        "question": f"Which {number}?",
        "correct_answer_num": str(1 + number % 4),
    } | answers


def _prox(number: int) -> Row:
    options: Row = {f"option_{choice}": f"choice {choice}" for choice in range(10)}
    question = {"question": f"Which {number}?", "category": PROX_CATEGORIES[number % len(PROX_CATEGORIES)]}
    return (
        options
        | question
        | {"answer": "A", "answer_index": 0, "cot_content": "A: Let's think. The answer is (A)."}
    )


def _truthfulqa(number: int) -> Row:
    choices = {"mc1_targets_choices": ["yes", "no"], "mc2_targets_choices": ["yes", "no"]}
    return {
        "question": f"Is it {number}?",
        "mc1_targets_labels": [1, 0],
        "mc2_targets_labels": [1, 0],
    } | choices


def _truthfulqa_gl(number: int) -> Row:
    targets = {"choices": ["si", "non"], "labels": [1, 0]}
    return {"question": f"Is it {number}?", "mc1_targets": targets, "mc2_targets": targets}


def _xcopa(number: int) -> Row:
    texts = {"premise": f"It rained {number}.", "choice1": "The street is wet.", "choice2": "The sun shone."}
    return texts | {"question": ("cause", "effect")[number % 2], "label": number % 2}


def _flores(number: int) -> Row:
    about = {
        "iso_639_3": "xxx",
        "iso_15924": "Latn",
        "glottocode": "xxxx1234",
        "url": "u",
        "domain": "d",
        "topic": "t",
    }
    return {"id": number, "text": f"Sentence {number}."} | about


# Data set -> its splits, and row `number` of one.
DATA_SETS: dict[str, tuple[str, int, Callable[[int], Row]]] = {
    "openlanguagedata/flores_plus": ("dev devtest", NUM_ROWS, _flores),
    "Davlan/sib200": (
        "train validation test",
        NUM_ROWS,
        lambda number: {
            "index_id": number,
            "category": SIB_CATEGORIES[number % 7],
            "text": f"Text {number}.",
        },
    ),
    "facebook/belebele": ("test", NUM_ROWS, _belebele),
    "proxectonos/belebele_gl": ("train", NUM_ROWS, _belebele),
    "jumelet/multiblimp": (
        "train",
        NUM_ROWS,
        lambda number: {"sen": f"He walks {number}.", "wrong_sen": f"He walk {number}."},
    ),
    "mrlbenchmarks/global-piqa-parallel": ("test", NUM_ROWS, _piqa),
    "mrlbenchmarks/global-piqa-nonparallel": ("test", NUM_ROWS, _piqa),
    "CohereForAI/include-base-44": (
        "test",
        NUM_ROWS,
        lambda number: (
            {"question": f"Which {number}?", "answer": number % 4, "domain": INCLUDE_DOMAINS[number % 11]}
            | _options(number)
        ),
    ),
    "CohereForAI/Global-MMLU": (
        "test dev",
        57 * 6,
        lambda number: (
            {
                "question": f"Which {number}?",
                "answer": "ABCD"[number % 4],
                "subject": MMLU_SUBJECTS[number % 57],
            }
            | _options(number)
        ),
    ),
    "li-lab/MMLU-ProX-Lite": ("test validation", 14 * 6, _prox),
    "alexandrainst/m_mmlu": (
        "train val test",
        NUM_ROWS,
        lambda number: {"instruction": f"Which {number}?", "answer": "ABCD"[number % 4]} | _options(number),
    ),
    "alexandrainst/m_arc": (
        "train validation test",
        NUM_ROWS,
        lambda number: (
            {
                "id": str(number),
                "instruction": f"Which {number}?",
                "answer": "ABCD"[number % 4],
                "option_e": None,
            }
            | _options(number)
        ),
    ),
    "alexandrainst/m_hellaswag": ("val", NUM_ROWS, _hellaswag),
    "alexandrainst/m_truthfulqa": ("val", NUM_ROWS, _truthfulqa),
    "proxectonos/truthfulqa_gl": ("validation", NUM_ROWS, _truthfulqa_gl),
    "cambridgeltl/xcopa": ("validation test", NUM_ROWS, _xcopa),
    "mideind/icelandic-arc-challenge": ("train validation test", NUM_ROWS, _arc),
    "LumiOpen/arc_challenge_mt": ("train validation test", NUM_ROWS, _arc),
    "mideind/icelandic-winogrande": ("train", NUM_ROWS, _winogrande),
    "Geralt-Targaryen/MELA": (
        "train dev test",
        NUM_ROWS,
        lambda number: {"sentence": f"He walks {number}.", "label": number % 2},
    ),
    "bharatgenai/IndicParam": (
        "test",
        NUM_ROWS,
        lambda number: (
            {"question_text": f"Which {number}?", "correct_answer": "a", "subject": "Nepali"}
            | _options(number)
        ),
    ),
    "cais/mmlu": (
        "test dev",
        6,
        lambda number: {
            "question": f"Which {number}?",
            "choices": [f"choice {letter}" for letter in "abcd"],
            "answer": number % 4,
        },
    ),
    "Rowan/hellaswag": ("train validation", NUM_ROWS, _hellaswag),
    "allenai/ai2_arc": ("train validation test", NUM_ROWS, _arc),
    "baber/piqa": (
        "train validation",
        NUM_ROWS,
        lambda number: {
            "goal": f"Open jar {number}.",
            "sol1": "Turn it.",
            "sol2": "Eat it.",
            "label": number % 2,
        },
    ),
    "allenai/winogrande": ("train validation", NUM_ROWS, _winogrande),
    "tau/commonsense_qa": (
        "train validation",
        NUM_ROWS,
        lambda number: {
            "question": f"Where {number}?",
            "choices": {"label": list("ABCDE"), "text": [f"place {letter}" for letter in "ABCDE"]},
            "answerKey": "ABCDE"[number % 5],
        },
    ),
    "openai/gsm8k": (
        "train test",
        NUM_ROWS,
        lambda number: {
            "question": f"How much is {number} + 1?",
            "answer": f"It is {number + 1}.\n#### {number + 1}",
        },
    ),
}


@cache
def _rows(path: str) -> DatasetDict:
    splits, count, row = DATA_SETS[path]
    return DatasetDict(
        {split: Dataset.from_list([row(number) for number in range(count)]) for split in splits.split()}
    )


def load_dataset(path: str, name: str | None = None, **settings: Any) -> DatasetDict:
    """Stands in for `datasets.load_dataset`, which would download."""
    if path == "Helsinki-NLP/opus-100":
        assert name is not None
        first, second = name.split("-")
        assert first < second, name  # as the pairs are named
        rows = [
            {"translation": {first: f"Line {number}.", second: f"Linja {number}."}}
            for number in range(NUM_ROWS)
        ]
        return DatasetDict({split: Dataset.from_list(rows) for split in ("train", "validation", "test")})
    return _rows(path)
