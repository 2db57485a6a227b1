"""Schedules against the authors' numbers, and their ends."""

import json
from pathlib import Path

import pytest

from openjepa import schedules

GOLDEN = json.loads((Path(__file__).parent / "golden" / "schedules.json").read_text())


@pytest.mark.parametrize("name", GOLDEN)
def test_every_step_is_the_authors(name: str) -> None:
    case = GOLDEN[name]
    steps = int(case["schedule_scale"] * case["epochs"] * case["iterations_per_epoch"])
    warmup = int(case["warmup_epochs"] * case["iterations_per_epoch"])
    assert len(case["lr"]) > 100
    for step, (lr, decay, momentum) in enumerate(zip(case["lr"], case["wd"], case["momentum"], strict=True)):
        ours = schedules.warmup_cosine(
            step + 1,
            total=steps,
            warmup=warmup,
            start=case["start_lr"],
            peak=case["ref_lr"],
            final=case["final_lr"],
        )
        assert ours == pytest.approx(lr, abs=1e-9)
        start, final = case["weight_decay"]
        assert schedules.cosine(step + 1, total=steps, start=start, final=final) == pytest.approx(
            decay, abs=1e-9
        )
        start, final = case["ema"]
        assert schedules.linear(step, total=steps, start=start, final=final) == pytest.approx(
            momentum, abs=1e-9
        )


def test_past_the_end_the_final_value_stays() -> None:
    assert schedules.warmup_cosine(12, total=10, warmup=2, start=0.1, peak=1.0, final=0.01) == pytest.approx(
        0.01
    )
    assert schedules.cosine(12, total=10, start=0.04, final=0.4) == pytest.approx(0.4)
    assert schedules.linear(12, total=10, start=0.996, final=1.0) == 1.0
