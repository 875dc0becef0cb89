"""One rank that loads a model for training and tells how much memory of its own that took at most."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from lape_ds.distributed import ranks
from lape_ds.model.loading import load_model, load_skeleton
from lape_ds.recipe import DeepSpeedSection, TrainSection
from lape_ds.subnetwork.compact import insert_slices
from lape_ds.training.partitioned import fill_partitioned
from lape_ds.training.zero import engine_config, initialize


def anonymous_bytes() -> int:
    """Resident memory that is this process's alone: not the mapped pages of files, which the kernel shares and drops."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


class Peak:
    """The largest growth seen, looked at every millisecond."""

    def __enter__(self) -> Peak:
        self.bytes, self._before, self._ended = 0, anonymous_bytes(), False
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended:
            self.bytes = max(self.bytes, anonymous_bytes() - self._before)
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()


def main(folder: Path, stage: int, out: Path) -> None:
    ranks.start()
    dist.all_reduce(torch.zeros(1))
    section = DeepSpeedSection.model_validate(
        {"zero_stage": stage, "config": {"zero_optimization": {"reduce_bucket_size": 1000}}}
    )
    config = engine_config(TrainSection(micro_batch_size=1, gradient_clipping=0), section, dtype="float32")
    # What any engine takes, however small: libraries that are imported late, DeepSpeed's own buffers.
    small = nn.Linear(2, 2)
    initialize(small, torch.optim.SGD(small.parameters(), lr=0.1), config).destroy()
    with Peak() as peak:
        if stage < 3:
            model = load_model(folder, dtype="float32", attn_implementation="sdpa")
        else:
            model = load_skeleton(folder, dtype=torch.float32, attn_implementation="sdpa")
            fill_partitioned(model, folder, config)
        loaded = peak.bytes
        trained = insert_slices(model, torch.tensor([(3, 5)]))
        initialize(model, torch.optim.SGD([part.parameter for part in trained], lr=0.1), config)
    (out / f"{stage}-{ranks.rank()}.json").write_text(json.dumps({"loaded": loaded, "ready": peak.bytes}))
    dist.barrier()
    ranks.end()
    ranks.leave(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
