"""FLORES+, OPUS-100 and SIB-200 tasks on local files in these data sets' own layout, made from CLDR text, and their scores
against a computation by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lape_ds.corpora.cldr import sample_records
from lape_ds.errors import UserError
from lape_ds.evaluation.harness import evaluate
from lape_ds.evaluation.public_documents import (
    TOPICS,
    flores_from_english,
    flores_text,
    flores_to_english,
    opus_from_english,
    sib_topic,
)
from lape_ds.evaluation.suites import Suite, load_suite
from lape_ds.languages import find_language
from tests.tiny_models import tiny_model

NUM = 3  # documents that are scored
ABOUT = {
    "url": "u",
    "domain": "d",
    "topic": "t",
    "has_image": "no",
    "has_hyperlink": "no",
    "last_updated": "1.0",
}


def lines(language: str, first: int, count: int) -> list[str]:
    return [
        record.text[:60]
        for record in sample_records(find_language(language), count=count, seed=3, first=first)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`flores_plus`, `opus-100` and `sib200`, as their repositories on the hub are laid out."""
    root = tmp_path_factory.mktemp("data")
    for split, first, count in (("dev", 0, 6), ("devtest", 100, NUM)):
        (root / "flores_plus" / split).mkdir(parents=True)
        for code in ("eng_Latn", "mlt_Latn"):
            rows = [
                {"id": place, "text": text} | ABOUT for place, text in enumerate(lines(code, first, count))
            ]
            # In another order: sentences meet by their id.
            rows = rows[::-1] if code == "mlt_Latn" else rows
            Dataset.from_list(rows).to_parquet(str(root / "flores_plus" / split / f"{code}.parquet"))
    (root / "opus-100" / "en-mt").mkdir(parents=True)
    for split, first, count in (("train", 300, 2), ("validation", 400, 6), ("test", 500, NUM)):
        pairs = zip(lines("en", first, count), lines("mt", first, count), strict=True)
        rows = [
            {"translation": {"en": f"{english}\nover two lines", "mt": maltese}} for english, maltese in pairs
        ]
        Dataset.from_list(rows).to_parquet(
            str(root / "opus-100" / "en-mt" / f"{split}-00000-of-00001.parquet")
        )
    (root / "sib200" / "data" / "mlt_Latn").mkdir(parents=True)
    for split, first, count in (("train", 600, 21), ("dev", 700, 3), ("test", 800, NUM)):
        table = [("index_id", "category", "text")]
        # Of each topic several in a row, so that the first seven are not one of each.
        table += [
            (str(place), TOPICS[place * 7 // count % 7], text)
            for place, text in enumerate(lines("mt", first, count))
        ]
        file = root / "sib200" / "data" / "mlt_Latn" / f"{split}.tsv"
        file.write_text("".join("\t".join(row) + "\n" for row in table), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bos_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A tiny model with room for examples and an answer of 512 tokens."""
    path = tmp_path_factory.mktemp("models") / "long"
    model = tiny_model(
        "llama", seed=0, vocab_size=len(bos_tokenizer), max_position_embeddings=1400, num_hidden_layers=1
    )
    model.save_pretrained(path)
    bos_tokenizer.save_pretrained(path)
    return path


def part(data: Path, **titles: str) -> Suite:
    """Tasks of the monolingual suite, each with its local copy."""
    suite = load_suite("monolingual")
    tasks = {}
    for title, copy in titles.items():
        spec = suite.tasks[title]
        tasks[title] = spec.model_copy(update={"metadata": spec.metadata | {"dataset": str(data / copy)}})
    return suite.model_copy(update={"tasks": tasks})


def measured(folder: Path, suite: Suite, output_dir: Path) -> tuple[Any, list[dict[str, Any]]]:
    results = evaluate({"tiny": folder}, suite=suite, languages=["mt"], output_dir=output_dir)["tiny"]
    ((name, result),) = results.items()
    samples = (output_dir / "tiny" / "samples" / f"{name}.jsonl").read_text(encoding="utf-8")
    return result, [json.loads(line) for line in samples.splitlines()]


def translated(folder: Path, prompt: str) -> str:
    """What the model greedily writes, up to the end of the line."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=512, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    text = tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return text.split("\n")[0].strip()


@pytest.mark.usefixtures("spbleu_model")
def test_flores_scores_are_sacrebleu_s_over_what_the_model_writes(data: Path, folder: Path, tmp_path: Path):
    result, samples = measured(folder, part(data, flores_from_english="flores_plus"), tmp_path)
    english, maltese = (lines(language, 0, 6) for language in ("en", "mt"))
    shown = "".join(
        f"English: {a}\nMaltese: {b}\n\n" for a, b in list(zip(english, maltese, strict=True))[:5]
    )
    sources, references = lines("en", 100, NUM), lines("mt", 100, NUM)
    prompts = [f"{shown}English: {source.strip()}\nMaltese:" for source in sources]
    assert [sample["arguments"][0][0] for sample in samples] == prompts
    hypotheses = [translated(folder, prompt) for prompt in prompts]
    for metric in ("chrf++", "spbleu"):
        assert [sample[metric] for sample in samples] == [
            [reference.strip(), hypothesis]
            for reference, hypothesis in zip(references, hypotheses, strict=True)
        ]
    references = [reference.strip() for reference in references]
    chrf = sacrebleu.corpus_chrf(hypotheses, [references], word_order=2).score
    assert chrf > 0
    assert result.scores["chrf++"].value == pytest.approx(chrf)
    bleu = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="flores200").score
    assert result.scores["spbleu"].value == pytest.approx(bleu)
    assert (result.metric, result.direction, result.settings["num_fewshot"]) == ("chrf++", "higher", 5)


def test_sib_accuracy_is_that_of_log_likelihoods_by_hand(data: Path, folder: Path, tmp_path: Path):
    result, samples = measured(folder, part(data, sib="sib200"), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    train = lines("mt", 600, 21)
    # One of each topic, in the topics' order: three in a row have the same.
    shown = "".join(
        f"Text: {train[3 * place].strip()}\nTopic: {topic}\n\n" for place, topic in enumerate(TOPICS)
    )
    right = 0
    for place, (text, sample) in enumerate(zip(lines("mt", 800, NUM), samples, strict=True)):
        prompt = f"{shown}Text: {text.strip()}\nTopic:"
        start = len(tokenizer(prompt).input_ids)
        scores = []
        for topic in TOPICS:
            ids = torch.tensor([tokenizer(f"{prompt} {topic}").input_ids])
            with torch.no_grad():
                log_probabilities = model(ids[:, :-1]).logits[0].log_softmax(-1)
            scores.append(
                sum(float(log_probabilities[at - 1, ids[0, at]]) for at in range(start, ids.shape[1]))
            )
        assert [reply[0][0] for reply in sample["resps"]] == pytest.approx(scores, rel=1e-4)
        right += scores.index(max(scores)) == place * 7 // NUM % 7
    assert result.scores["acc"].value == pytest.approx(right / NUM)
    assert result.random_baseline == pytest.approx(1 / 7, abs=1e-6)


def test_flores_goes_both_ways_and_has_text_alone(data: Path):
    copy = str(data / "flores_plus")
    there, back = (
        task(language="mt", dataset=copy)["devtest"] for task in (flores_from_english, flores_to_english)
    )
    assert there["source"] == back["target"] == [text.strip() for text in lines("en", 100, NUM)]
    assert there["target"] == back["source"] == [text.strip() for text in lines("mt", 100, NUM)]
    assert (there[0]["target_language"], back[0]["target_language"]) == ("Maltese", "English")
    # By no strip: from the first byte to the last.
    assert sorted(flores_text(language="mt", dataset=copy)["devtest"]["text"]) == sorted(
        lines("mt", 100, NUM)
    )


def test_an_opus_pair_has_one_name_and_its_lines_one_line(data: Path):
    test = opus_from_english(language="Maltese", dataset=str(data / "opus-100"))["test"]
    assert test["source"] == [" ".join(f"{text} over two lines".split()) for text in lines("en", 500, NUM)]
    assert test["target"] == [" ".join(text.split()) for text in lines("mt", 500, NUM)]


def test_a_release_of_bare_lines_is_read_by_their_place(tmp_path: Path):
    """FLORES+'s archive: `devtest/devtest.mlt_Latn`, a sentence a line."""
    for split in ("dev", "devtest"):
        (tmp_path / split).mkdir()
        for code, text in (("eng_Latn", "One.\nTwo.\n"), ("mlt_Latn", "Wieħed.\nTnejn.\n")):
            (tmp_path / split / f"{split}.{code}").write_text(text, encoding="utf-8")
    dev = flores_to_english(language="mt", dataset=str(tmp_path))["dev"]
    assert list(zip(dev["source"], dev["target"], strict=True)) == [("Wieħed.", "One."), ("Tnejn.", "Two.")]


def test_a_folder_with_a_header_is_read_by_its_configs(data: Path, tmp_path: Path):
    """As `hf download` leaves it: README.md lists each config's files."""
    source = data / "sib200" / "data" / "mlt_Latn"
    for split in ("train", "test"):
        rows = load_dataset("csv", delimiter="\t", data_files=str(source / f"{split}.tsv"), split="train")
        rows.to_parquet(str(tmp_path / f"some-{split}.parquet"))
    splits = "".join(f"  - {{split: {split}, path: some-{split}.parquet}}\n" for split in ("train", "test"))
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n- config_name: mlt_Latn\n  data_files:\n{splits}---\n"
    )
    ours = sib_topic(language="mt", dataset=str(data / "sib200"))["test"]
    assert list(sib_topic(language="mt", dataset=str(tmp_path))["test"]) == list(ours)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("nowhere", r"task flores_to_english: no folder or file .*nowhere"),
        (
            "empty",
            r"task flores_to_english: hub data set .*empty \(mlt_Latn\) cannot be read|no data set .*empty",
        ),
        ("other-ids", r"devtest of .* is not the same sentences in mlt_Latn \(2\) and eng_Latn \(3\)"),
        ("no-text", r"other \(mlt_Latn\) has no column 'text' but id, sentence"),
        ("cut", r"cannot be read"),
    ],
)
def test_what_is_wrong_with_a_local_copy_is_one_line(data: Path, tmp_path: Path, broken: str, said: str):
    copy = tmp_path / {"nowhere": "nowhere", "empty": "empty"}.get(broken, "other")
    if broken != "nowhere":
        copy.mkdir()
    if broken in ("other-ids", "no-text", "cut"):
        for split in ("dev", "devtest"):
            (copy / split).mkdir()
            for code in ("eng_Latn", "mlt_Latn"):
                content = (data / "flores_plus" / split / f"{code}.parquet").read_bytes()
                (copy / split / f"{code}.parquet").write_bytes(content)
        file = copy / "devtest" / "mlt_Latn.parquet"
        if broken == "cut":
            file.write_bytes(file.read_bytes()[:100])
        else:
            column = "text" if broken == "other-ids" else "sentence"
            Dataset.from_list([{"id": place, column: "x"} for place in range(2)]).to_parquet(str(file))
        if broken == "no-text":
            Dataset.from_list([{"id": 0, column: "x"}]).to_parquet(str(copy / "dev" / "mlt_Latn.parquet"))
    with pytest.raises(UserError, match=said) as caught:
        flores_to_english(language="mt", dataset=str(copy))
    assert "\n" not in str(caught.value)


def test_a_language_that_the_data_set_lacks_is_refused():
    with pytest.raises(UserError, match=r"task sib: its data set has no Manx \(glv_Latn\)"):
        sib_topic(language="gv", dataset="Davlan/sib200")
