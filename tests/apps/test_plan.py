"""What `auto` does with a budget: image size, pace and forecast, alike on every machine where the budget is steps."""

import json
from pathlib import Path

import pytest
import yaml

import openjepa
from make_images import encode, picture
from openjepa.apps import plan as planning
from openjepa.apps.plan import Forecast, forecast, plan
from openjepa.config import Config
from openjepa.data.sources import open_source
from openjepa.errors import UserError
from openjepa.presets import Images, Settings, first_share, preset
from openjepa.settings import load_config

PHOTOGRAPHS = Images(side=224, number=40)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    for number in range(40):
        (folder / f"{number}.png").write_bytes(encode(picture(224, 225 + number)))
    return folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that needs a tenth of a second for a step of 64 patches, and more for more; loading costs nothing."""

    def seconds(config: Config) -> list[float]:
        rows, columns = (
            side // patch for side, patch in zip(config.data.image_size, config.model.patch_size, strict=True)
        )
        return [0.0, 0.1 * rows * columns / 64]

    monkeypatch.setattr(planning, "_step_seconds", seconds)
    monkeypatch.setattr(planning, "_loading_seconds", lambda *_: (0.0, 0.0))


def planned(data: Path, *, method: str = "ijepa", **budget: float) -> tuple[Config, Forecast | None]:
    changes = {f"budget.{name}": value for name, value in budget.items()}

    def resolve(settings: Settings) -> Config:
        return load_config(settings, changes=changes)

    choice, ahead = plan(open_source(data), PHOTOGRAPHS, resolve, method=method, accelerated=False)
    return resolve(choice.settings), ahead


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("minutes", "size"), [(2, 32), (5, 32), (20, 32), (60, 48), (180, 64)])
def test_more_time_buys_larger_images(data: Path, minutes: float, size: int) -> None:
    config, ahead = planned(data, max_minutes=minutes)
    assert config.data.image_size == (size, size)
    assert config.model.patch_size == (4, 4)
    assert ahead is not None
    steps = 60 * minutes / (0.1 * (size / 32) ** 2)
    assert ahead.total == pytest.approx(steps, rel=0.01)
    assert ahead.first_steps == pytest.approx(steps * first_share(steps), rel=0.01)
    assert config.first_stage.share == first_share(steps)
    assert ahead.images == ahead.total * config.data.batch_size


@pytest.mark.usefixtures("machine")
def test_the_pace_follows_the_length(data: Path) -> None:
    (short, _), (long, _) = planned(data, max_minutes=2), planned(data, max_minutes=60)
    assert short.optim.lr > long.optim.lr
    assert short.ema.end < long.ema.end
    assert 0.45 < short.first_stage.share <= 0.5
    assert 0.25 <= long.first_stage.share < 0.3
    assert short.first_stage.lr == long.first_stage.lr == 2e-3


def test_a_run_by_steps_asks_no_machine(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_step_seconds", lambda config: pytest.fail("measured"))
    few, ahead = planned(data, steps=600)
    assert few.data.image_size == (32, 32)
    assert ahead == Forecast(first_steps=300, steps=300, images=600 * 32, seconds=None)
    many, _ = planned(data, steps=30_000)
    assert many.data.image_size == (64, 64)


@pytest.mark.usefixtures("machine")
def test_other_methods_and_sizes_that_were_asked_for(data: Path) -> None:
    config, ahead = planned(data, method="mae", max_minutes=2)
    assert config.preset == "small"
    assert ahead is not None
    assert ahead.first_steps == 0
    whole = load_config(preset("salt"), changes={"budget.max_minutes": 1.0, "first_stage.share": 0.5})
    found = forecast(whole, open_source(data))
    assert found is not None
    assert found.first_steps == found.steps == 300
    assert "about 300 + 300 steps, 38,400 images (each 960.0 times), 640 images/s" in found.words(40)
    assert forecast(load_config(preset("salt")), open_source(data)) is None


def test_a_step_is_really_timed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path))
    changes = {"budget.max_minutes": 2.0, "runtime.threads": 1, "runtime.precision": "float32"}
    config = load_config(
        preset("salt"), changes={**changes, "model.name": "vit_pico", "model.predictor_dim": 32}
    )
    one = forecast(config, open_source(data))
    other = forecast(config, open_source(data))
    assert one is not None
    assert other is not None
    assert 10 < one.steps < 100_000
    assert other.steps == pytest.approx(one.steps, rel=0.5)  # loading is timed each time, steps only once
    # Attention, and the steps of two stages.
    assert len(json.loads((tmp_path / "machine.json").read_text())) == 3


@pytest.mark.parametrize(("num", "steps"), [(40, 298), (400_000, 200)])
def test_images_are_described_once(data: Path, monkeypatch: pytest.MonkeyPatch, num: int, steps: int) -> None:
    """A step takes 0.05 s and its share of asking, 0.2 s for 64 crops; describing 64 images takes as long."""
    monkeypatch.setattr(planning, "_step_seconds", lambda config: [0.2, 0.05])
    monkeypatch.setattr(planning, "_loading_seconds", lambda *_: (0.0, 0.0))
    source = open_source(data)
    monkeypatch.setattr(type(source), "__len__", lambda self: num)
    config = load_config(
        preset("salt"),
        changes={"budget.max_minutes": 1.0, "data.batch_size": 64, "first_stage.share": 0.5},
    )
    found = forecast(config, source)
    assert found is not None
    assert found.steps == pytest.approx(steps, abs=1)


def test_a_method_is_the_same_by_option_by_set_and_by_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mae.yaml"
    file.write_text("method: mae\n")
    told = []
    for asked in ({"method": "mae"}, {"set": ["method=mae"]}, {"config": file}):
        openjepa.pretrain(data=data, steps=8, dry_run=True, **asked)
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] == told[2]
    assert "preset: small" in told[0]


def test_the_plan_tells_of_a_size_that_was_asked_for(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    openjepa.pretrain(data=data, steps=20_000, set=["data.image_size=40"], dry_run=True)
    assert "salt, 10 × 10 patches of 4 px" in caplog.text


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    openjepa.pretrain(data=data, out=tmp_path / "run", steps=8, dry_run=True)
    assert not (tmp_path / "run").exists()
    assert "salt, 8 × 8 patches of 4 px" in caplog.text
    assert "expects about 4 + 4 steps, 256 images" in caplog.text
    config = load_config(yaml.safe_load(capsys.readouterr().out))
    assert config.plan in caplog.text
    assert config.budget.steps == 8
    openjepa.pretrain(data=data, steps=8, dry_run=True)
    with pytest.raises(UserError, match="--out DIR"):
        openjepa.pretrain(data=data, steps=8)
