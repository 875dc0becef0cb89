"""What the hub raises, in one line that says what to do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from datasets.exceptions import DatasetNotFoundError

from lape_ds.corpora import hub
from lape_ds.corpora.hub import HubUnreachable, hub_identity, read_hub
from lape_ds.errors import NoText, UserError
from lape_ds.languages import find_language
from lape_ds.recipe import HubSource

MALTESE = find_language("mt")
SOURCE = HubSource(kind="hub", dataset="cis-lmu/GlotCC-V1", config="{glotcc}")


class _Response:
    status_code = 403


class _Forbidden(OSError):
    response = _Response()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            # The words of datasets 5.2 (load.py, dataset_module_factory), as of those below.
            DatasetNotFoundError(
                "Dataset 'x/y' is a gated dataset on the Hub. You must be authenticated to access it."
            ),
            r"cis-lmu/GlotCC-V1 \(mlt-Latn\) is gated or private: accept its terms at "
            r"https://huggingface.co/datasets/cis-lmu/GlotCC-V1 and log in .*HF_TOKEN",
        ),
        (_Forbidden("403 Client Error"), "gated or private"),
        (
            DatasetNotFoundError("Dataset 'x/y' doesn't exist on the Hub or cannot be accessed."),
            "no hub data set",
        ),
        (
            ValueError("BuilderConfig 'mlt-Latn' not found. Available: ['a']\nmore"),
            r"GlotCC-V1 \(mlt-Latn\) has no such config: no text of mlt_Latn; .*corpus\.per_language\.mlt_Latn",
        ),
        (
            DatasetNotFoundError("Revision 'v9' doesn't exist for dataset 'x/aggregated' on the Hub."),
            r"no hub data set .*Revision 'v9' doesn't exist.*check its name and revision",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found y.py"),
            "cannot be read: Dataset scripts",
        ),
        (
            ConnectionError("Couldn't reach 'x/y' on the Hub (LocalEntryNotFoundError)"),
            "cannot reach .*check the network",
        ),
    ],
)
def test_faults_of_the_hub(monkeypatch, error, said):
    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr(hub, "_builder", fail)
    for ask in (lambda: hub_identity(SOURCE, MALTESE), lambda: next(read_hub(SOURCE, MALTESE))):
        with pytest.raises(UserError, match=said) as refusal:
            ask()
        assert "\n" not in str(refusal.value)
        assert isinstance(refusal.value, HubUnreachable) == isinstance(error, ConnectionError)
        assert isinstance(refusal.value, NoText) == isinstance(error, ValueError)


def test_a_config_that_is_the_same_for_all_languages_is_a_mistake(monkeypatch):
    def fail(*arguments, **settings):
        raise ValueError("BuilderConfig 'mtl' not found. Available: ['a']\nmore")

    monkeypatch.setattr(hub, "_builder", fail)
    with pytest.raises(UserError, match=r"\(mtl\) cannot be read: .* Available: \['a'\]$") as refusal:
        hub_identity(SOURCE.model_copy(update={"config": "mtl"}), MALTESE)
    assert not isinstance(refusal.value, NoText)


def test_identity_is_the_commit(monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"

    data_files = {
        "train": [f"hf://datasets/x/y@{commit}/mlt/{shard}.parquet" for shard in range(3)],
        "test": ["hf://datasets/x/y@fedcba9876543210fedcba9876543210fedcba98/mlt/0.parquet"],
    }
    builder = SimpleNamespace(config=SimpleNamespace(data_files=data_files))
    monkeypatch.setattr(hub, "_builder", lambda *arguments: builder)
    assert hub_identity(SOURCE, MALTESE) == [commit]
