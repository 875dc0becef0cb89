"""Which trainings tests/training/test_heldout.py sets side by side; its ranks run them one after another."""

from __future__ import annotations

from dataclasses import dataclass

from tests.training.update_norms import EVERY_CHECKPOINT

STEPS = 4
# ka is replayed, too; cy and ru are neither identified nor trained.
MEASUREMENTS = {
    "every-step": [
        "train.heldout.every_steps=1",
        "train.heldout.languages=[en,ka,cy,ru]",
        "train.log_update_norms=true",
        *EVERY_CHECKPOINT,
    ],
    "every-third": ["train.heldout.every_steps=3", "train.heldout.languages=[cy]"],
    "never": ["train.heldout.every_steps=null"],
}
ODD_TEXTS = "odd-texts"  # a run of stage 3 that measures on these
DOCUMENT_LENGTHS = {
    "three documents": [5, 30, 11],
    "one rank has nothing": [9],
    "longer than a window": [33, 150, 64, 1, 200],
    "of no token": [0, 0],
}


@dataclass(frozen=True)
class Layout:
    """How a training is spread over two ranks."""

    stage: int
    engine: str
    offload: str = "none"
    method: str = "subnetwork"

    @property
    def name(self) -> str:
        more = [self.offload] * (self.offload != "none") + [self.method] * (self.method != "subnetwork")
        return "-".join([f"zero{self.stage}", self.engine, *more])

    @property
    def measurements(self) -> list[str]:
        """Every third step is a mixture of the other two: one layout of each engine has it."""
        return [name for name in MEASUREMENTS if name != "every-third" or self in EVERY_THIRD]

    @property
    def overrides(self) -> list[str]:
        offload = {
            "none": [],
            "states": ["deepspeed.offload_optimizer=cpu"],
            "weights": ["deepspeed.offload_parameters=cpu"],
            "all": ["deepspeed.offload_optimizer=cpu", "deepspeed.offload_parameters=cpu"],
        }[self.offload]
        return [
            f"deepspeed.zero_stage={self.stage}",
            f"train.engine={self.engine}",
            f"train.method={self.method}",
            *offload,
        ]


LAYOUTS = [
    Layout(0, "compact"),
    Layout(0, "masked"),
    Layout(1, "compact"),
    Layout(1, "masked", "states"),
    Layout(2, "compact", "states"),
    Layout(2, "masked"),
    Layout(3, "compact"),
    Layout(3, "masked"),
    Layout(3, "compact", "all"),
    Layout(3, "masked", "weights"),
    Layout(2, "compact", method="lora"),  # with dropout, so every step draws
]
EVERY_THIRD = (Layout(1, "masked", "states"), Layout(3, "compact"))


def overrides(layout: Layout, measurement: str) -> list[str]:
    return [
        f"train.run_name=heldout/{layout.name}/{measurement}",
        f"train.max_steps={STEPS}",
        "train.gradient_accumulation_steps=1",
        # Little of ka is replayed, and more of it would have to be read to hold out enough.
        "train.tokens=1500",
        "train.heldout.tokens_per_language=100",
        "train.heldout.tokens_per_batch=64",
        "train.checkpoint_every_steps=100",  # only the best ones and the last
        "train.log_update_norms=false",
        "launch.check_memory=off",
        *layout.overrides,
        *MEASUREMENTS.get(measurement, ["train.heldout.every_steps=1"]),
    ]
