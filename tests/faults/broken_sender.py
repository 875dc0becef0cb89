"""A rank of two, for test_rank_failures.py: the first one sends a model of another size than both are to fill."""

from __future__ import annotations

import torch

from lape_ds.distributed import ranks
from lape_ds.training import partitioned
from tests.tiny_models import tiny_model
from tests.training.partition_worker import config_of


def main() -> None:
    ranks.start()
    print("joined", flush=True)
    with torch.device("meta"):
        model = tiny_model("llama")
    whole = tiny_model("llama", intermediate_size=29) if ranks.rank() == 0 else None
    zero = partitioned.deepspeed.zero.Init(module=torch.nn.Module(), config_dict_or_path=config_of("float32"))
    try:
        partitioned._receive_parts(zero, model, whole)
    except Exception as error:
        ranks.fail(error)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
