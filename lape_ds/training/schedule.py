"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from lape_ds.recipe import OptimizerSection, ScheduleSection


def learning_rate(
    step: int, total_steps: int, optimizer: OptimizerSection, schedule: ScheduleSection
) -> float:
    """Learning rate of one optimizer step.

    Args:
        step: From 0.
        total_steps: Of the whole run; the last step (`total_steps - 1`) reaches `final_ratio` of the peak.
        optimizer: Gives the peak.
        schedule: Linear warm-up over `warmup_steps` steps, then constant, linear or cosine.
    """
    peak = optimizer.learning_rate
    if step < schedule.warmup_steps:
        return peak * (step + 1) / (schedule.warmup_steps + 1)
    if schedule.name == "constant":
        return peak
    progress = (step - schedule.warmup_steps) / max(1, total_steps - 1 - schedule.warmup_steps)
    remaining = 1 - progress if schedule.name == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * remaining)
