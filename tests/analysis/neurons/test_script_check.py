"""The romanised control, on sets made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lape_ds import cli
from lape_ds.analysis.neurons.script_check import check_script
from lape_ds.errors import UserError
from lape_ds.neurons.neuron_set import NeuronSet


def make(**languages: range) -> NeuronSet:
    """Neurons of the one layer, by language."""
    indices = {
        code: torch.tensor([[0, i] for i in of]).int().reshape(-1, 2) for code, of in languages.items()
    }
    return NeuronSet(indices, 1, 100, "tiny", "f" * 64, "lape", {})


NATIVE = make(mkd_Cyrl=range(10), bul_Cyrl=range(8, 16), eng_Latn=range(50, 60), deu_Latn=range(9, 29))


def test_a_set_that_follows_the_language() -> None:
    """8 of 12 with the copy; 2 of 16 with Bulgarian; 0 and 1 of 29 with Latin, of the copy 0 and 2 of 28."""
    copy = replace(NATIVE, indices={**NATIVE.indices, "mkd_Cyrl": make(x=range(2, 12)).neurons("x")})
    check = check_script(NATIVE, copy, "mkd_Cyrl")
    assert (check.num_native, check.num_copy, check.copy) == (10, 10, 8 / 12)
    assert check.same_script == {"bul_Cyrl": 2 / 16}
    assert check.native_latin == {"eng_Latn": 0, "deu_Latn": 1 / 29}
    assert check.copy_latin == {"eng_Latn": 0, "deu_Latn": 3 / 27}
    assert check.reading().startswith("the set follows the language")
    assert "deu_Latn 0.111 nearest" in "\n".join(check.lines())


def test_a_set_that_follows_the_script() -> None:
    copy = replace(NATIVE, indices={**NATIVE.indices, "mkd_Cyrl": make(x=range(52, 62)).neurons("x")})
    check = check_script(NATIVE, copy, "mkd_Cyrl")
    assert check.copy == 0
    assert check.copy_latin["eng_Latn"] == 8 / 12
    assert check.reading().startswith("the set follows the script")


def test_between_the_two() -> None:
    """4 of 16 with the copy: above the mean of its neighbours, below Bulgarian's nearest."""
    native = replace(NATIVE, indices={**NATIVE.indices, "bul_Cyrl": make(x=range(1, 11)).neurons("x")})
    copy = replace(native, indices={**native.indices, "mkd_Cyrl": make(x=range(4, 12)).neurons("x")})
    assert check_script(native, copy, "mkd_Cyrl").reading().startswith("both")


def test_empty_sets_and_lone_languages_give_no_reading() -> None:
    empty = replace(NATIVE, indices={**NATIVE.indices, "mkd_Cyrl": make(x=range(0)).neurons("x")})
    assert "is empty" in check_script(NATIVE, empty, "mkd_Cyrl").reading()
    alone = make(kat_Geor=range(5))
    assert "no other language" in check_script(alone, alone, "kat_Geor").reading()


def test_what_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="eng_Latn: is in Latin script already"):
        check_script(NATIVE, NATIVE, "eng_Latn")
    with pytest.raises(UserError, match="has no language kat_Geor"):
        check_script(NATIVE, NATIVE, "kat_Geor")
    with pytest.raises(UserError, match=r"differ in method \(lape and probability\)"):
        check_script(NATIVE, replace(NATIVE, method="probability"), "mkd_Cyrl")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    NATIVE.save(tmp_path / "a.safetensors")
    path = str(tmp_path / "a.safetensors")
    monkeypatch.setattr(
        "sys.argv", ["lape-ds", "neurons", "script-check", path, path, "--language", "mk", "--json"]
    )
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["language"], told["copy"]) == ("mkd_Cyrl", 1.0)
