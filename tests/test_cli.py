import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lape_ds import cli
from lape_ds.errors import UserError
from lape_ds.neurons.neuron_set import NeuronSet

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "recipes" / "quickstart.yaml")


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["lape-ds", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


STAGES = tuple(
    "pretrain corpus identify train sweep export prefetch eval compare suites summary languages plan tune".split()
)
NEURONS = ("show", "overlap", "import", "export")


@pytest.mark.parametrize(
    "command",
    [
        *([stage] for stage in STAGES),
        *(["neurons", name] for name in NEURONS),
        ["bench", "train"],
        ["bench", "identify"],
        *(["pack", name] for name in ("make", "diff", "apply", "revert", "compose", "show", "card")),
        *(["neurons", name] for name in ("script-check", "merge", "select", "ablate", "stability")),
        *(["matrix", name] for name in ("run", "status", "table", "plan")),
        ["atlas"],
        ["bench", "select"],
        ["bench", "pack"],
    ],
)
def test_every_command_has_help_with_an_example(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, *command, "--help") == 0
    assert f"Example: lape-ds {' '.join(command)} " in " ".join(capsys.readouterr().out.split()) + " "


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["train"], "Missing argument 'RECIPE'"),
        (["train", "--steps", QUICKSTART], "No such option: --steps"),
        (["identify", "none.yaml"], "no recipe none.yaml"),
        (["identify", QUICKSTART, "identify.top_rat=1"], "did you mean identify.top_rate?"),
        (["identify", QUICKSTART, "languages.identify=mt,cy"], 'array, not "mt,cy"; write [mt,cy] (override'),
        (["identify", QUICKSTART, "--push", "me/it"], "`lape-ds atlas RECIPE --push USER/NAME` identifies"),
        (
            ["neurons", "show", str(ROOT / "README.md")],
            "README.md is neither a neuron set (.safetensors) nor",
        ),
        (["languages", "Maltees"], "did you mean Maltese (mlt_Latn)"),
        (["suites", "genral"], "unknown suite 'genral', did you mean 'general'?"),
        (["suites", "general", "--languages", "Maltees"], "did you mean Maltese (mlt_Latn)"),
        (["eval", QUICKSTART, "--limit", "0"], "--limit"),
        (["bench", "train", "--shape", "gpt"], "--shape gpt: no such shape; allowed: cpu-100m"),
        (["bench", "train", "--neurons", "all"], "--neurons all: no such choice; allowed: uniform-1%"),
        (["bench", "train", "--methods", "lora"], "--methods lora: no such method; allowed: full"),
    ],
)
def test_the_users_faults_are_one_line_and_exit_2(
    arguments: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    def users_fault(**_: object) -> None:
        raise UserError("two\nlines")

    monkeypatch.setattr(cli, "app", interrupted)
    assert run_main(monkeypatch) == 130
    monkeypatch.setattr(cli, "app", users_fault)
    assert run_main(monkeypatch) == 2
    assert capsys.readouterr().err.endswith("error: two lines\n")


def test_our_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def our_fault(**_: object) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(cli, "app", our_fault)
    with pytest.raises(RuntimeError, match="bug"):  # Python itself exits with 1
        cli.main()


def test_languages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "languages", "et") == 0
    assert "ekk_Latn" in capsys.readouterr().out
    assert run_main(monkeypatch, "languages") == 0
    assert len(capsys.readouterr().out.splitlines()) > 200  # CLDR alone offers more


def test_show_neurons_of_a_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "neurons.safetensors"
    neurons = torch.tensor([[0, 5], [1, 0]], dtype=torch.int32)
    NeuronSet({"mlt_Latn": neurons}, 2, 8, "tiny", "", "lape", {}, experts_per_layer=4).save(path)
    assert run_main(monkeypatch, "neurons", "show", str(path)) == 0
    out = capsys.readouterr().out
    assert "tiny: 2 layers x 8 neurons in 4 experts, lape" in out
    assert "mlt_Latn          2 (12.500 %), 2 its own; per layer: 1 1" in out


def test_help_is_quick_and_heavy_imports_wait() -> None:
    code = (
        "import sys; sys.argv=['lape-ds', '--help']\n"
        "from lape_ds import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "import json; print(json.dumps([m for m in ('torch', 'pydantic', 'babel') if m in sys.modules]))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert time.monotonic() - started < 3  # half a second on an idle machine


def test_bare_command_shows_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch) == 2
    assert "Commands:" in capsys.readouterr().err
