"""ZeRO-3's gathers by hand; the real engine's are in test_bytes.py."""

from __future__ import annotations

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from lape_ds.training.plan.gathers import Gathers, follow
from lape_ds.training.plan.profile import Use

A, B, C = (Use(((number, numel),)) for number, numel in enumerate((100, 10, 1)))
STEP = [A, B, C, C, B, A]  # forward and backward of three modules


def rules(*, reuse: int, prefetch: int = 0, live: int = 10**9) -> DeepSpeedZeroConfig:
    settings = {"max_reuse_distance": reuse, "prefetch_bucket_size": prefetch, "max_live_parameters": live}
    return DeepSpeedZeroConfig.model_validate({f"stage3_{key}": value for key, value in settings.items()})


def test_without_reuse_or_prefetch_one_module_at_a_time() -> None:
    assert follow(STEP, rules(reuse=0)) == Gathers(live=100, fetched=2 * 111)


def test_what_comes_again_soon_is_kept() -> None:
    """B comes again behind both uses of C, 2 elements on; A behind 2 x 11, which is too far."""
    assert follow(STEP, rules(reuse=3)) == Gathers(live=100, fetched=2 * 100 + 11)
    assert follow(STEP, rules(reuse=10**9)) == Gathers(live=111, fetched=111)


def test_the_prefetch_takes_whole_weights_until_its_bucket_is_full() -> None:
    """Forward alone. At A: B and, since 10 < 11, C as well."""
    assert follow(STEP[:3], rules(reuse=0, prefetch=11)).live == 111
    assert follow(STEP[:3], rules(reuse=0, prefetch=10)).live == 110
    assert follow(STEP[:3], rules(reuse=0, prefetch=11, live=100)).live == 100
