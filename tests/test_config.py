"""Settings: presets, files, overrides, refusals with a way out."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from openjepa.errors import UserError
from openjepa.masks import make_masks
from openjepa.methods import METHODS
from openjepa.methods.ijepa import build_ijepa
from openjepa.models.architecture import architecture_of
from openjepa.models.vit import SIZES
from openjepa.presets import PRESETS, Images, candidates, choose_preset, paced, preset, with_method
from openjepa.settings import differences, dump_config, known_keys, load_config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_whole(name: str) -> None:
    config = load_config(preset(name))
    architecture = architecture_of(config)
    make_masks(config.masks.name, grid=architecture.grid, **config.masks.settings())
    assert config.preset == name
    assert SIZES[config.model.name].embed_dim == architecture.embed_dim


@pytest.mark.parametrize("side", [20, 28, 32, 47, 64, 96, 150, 224, 500])
def test_the_automatic_preset_fits_any_size(side: int) -> None:
    choice = choose_preset(Images(side=side, number=140), accelerated=side != 500)
    config = load_config(choice.settings)
    make_masks(config.masks.name, grid=architecture_of(config).grid, **config.masks.settings())
    assert f"shorter side about {side} px" in choice.reason
    assert config.data.image_size[0] <= max(28, side)
    assert config.data.batch_size <= 128


@pytest.mark.parametrize("setting", ["objective.loss=contrastive", "objective.target_norm=centred"])
def test_what_compares_images_needs_another_one(setting: str) -> None:
    alone = ["data.batch_size=4", "optim.accumulate=4"]
    pure = ["objective.target_norm=layer", *alone]
    with pytest.raises(UserError, match=r"data\.batch_size=8 or more"):
        load_config(preset("small"), overrides=[*pure, setting])
    assert load_config(preset("small"), overrides=pure).data.batch_size == 4


def test_the_automatic_preset_knows_the_machine_and_the_channels() -> None:
    photographs = Images(side=375, number=140)
    without = load_config(choose_preset(photographs).settings)
    assert (without.preset, without.data.image_size, without.model.patch_size) == ("salt", (32, 32), (4, 4))
    larger = load_config(choose_preset(photographs, size=48).settings)
    assert larger.data.image_size == (48, 48)
    assert choose_preset(photographs, accelerated=True).settings["preset"] == "standard"
    grey = choose_preset(Images(side=28, number=60_000, channels=1))
    assert load_config(grey.settings).data.channels == 1
    assert "1 channel," in grey.reason
    medium = choose_preset(Images(side=150, number=140), accelerated=True)
    assert load_config(medium.settings).data.image_size == (144, 144)


def test_small_images_have_one_size_and_photographs_a_choice() -> None:
    assert candidates(20) == [28]
    assert candidates(47) == [44]
    assert candidates(56) == [32, 48]
    assert candidates(224) == [32, 48, 64]
    assert candidates(224, patch=16) == [224 // 16 * 16 - 96, 192]  # 8 and 12 patches across
    assert candidates(120, patch=16) == [112]


def test_short_runs_are_faster_in_everything() -> None:
    short, long, longest = (paced(steps) for steps in (300, 5000, 500_000))
    assert short["optim"]["lr"] == 3e-3
    assert long["optim"]["lr"] == longest["optim"]["lr"] == 1.5e-3
    assert short["ema"]["end"] < long["ema"]["end"] == longest["ema"]["end"] == 0.999
    for settings in (short, long, longest, paced(1)):
        assert 0 < settings["ema"]["start"] <= settings["ema"]["end"] < 1


def test_the_automatic_preset_needs_no_first_stage_where_weights_are_given() -> None:
    small = Images(side=32, number=50_000)
    assert choose_preset(small).settings["preset"] == "salt"
    adapted = choose_preset(small, from_weights=True)
    config = load_config(adapted.settings, changes={"init_from": "earlier", "budget.steps": 10})
    assert (config.preset, config.first_stage.method) == ("salt", "none")
    assert (config.ema.generations, config.objective.whole_weight) == (1, 2.0)
    assert "the encoder to start from is the teacher" in adapted.reason


@pytest.mark.parametrize("from_weights", [False, True])
def test_the_automatic_preset_of_another_method_speaks_of_no_teacher(from_weights: bool) -> None:
    choice = choose_preset(Images(side=32, number=50_000), method="mae", from_weights=from_weights)
    assert choice.settings["preset"] == "small"
    assert "teach" not in choice.reason


def test_a_random_network_is_no_teacher_to_the_end() -> None:
    with pytest.raises(
        UserError, match=r"first_stage\.method=mae, give --init-from, or set ema\.generations=0"
    ):
        load_config(preset("small"), overrides=["ema.generations=1"])
    with pytest.raises(UserError, match="random network"):
        load_config(preset("salt"), overrides=["first_stage.method=none"])
    for changes in ({"init_from": "earlier"}, {"method": "mae"}, {"ema.generations": 2}):
        load_config(preset("small"), overrides=["ema.generations=1"], changes=changes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_method_has_settings_with_every_preset(name: str, method: str) -> None:
    config = load_config(with_method(preset(name), method))
    assert config.method == method
    before = load_config(preset(name))
    if method == "ijepa":
        assert config == before
    else:
        assert config.masks.name == "random"
        assert config.optim.lr == pytest.approx(before.optim.lr * before.optim.muon_ratio * 2 / 3)
        assert config.optim.muon_ratio == 1
        assert config.data == before.data


def test_another_mask_sampler_starts_from_its_own_settings() -> None:
    config = load_config(preset("multiblock"), overrides=["masks.target_fraction=0.5", "masks.name=random"])
    assert config.masks.settings() == {"target_fraction": 0.5}
    same = load_config(preset("multiblock"), overrides=["masks.name=multiblock"])
    assert same.masks.settings() == {"context_fraction": 28 / 64}


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optim: {lr: 1e-4, weight_decay: 0.1}\nseed: 3\n")
    config = load_config(preset("small"), file=file, overrides=["optim.lr=1e-3"], changes={"seed": 4})
    assert (config.optim.lr, config.optim.weight_decay, config.seed) == (1e-3, 0.1, 4)


def test_what_is_dumped_is_what_is_loaded() -> None:
    config = load_config(preset("standard"), overrides=["masks.context_fraction=0.3", "budget.steps=7"])
    assert load_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.learning_rate=1", "optim.lr"),
        ("lr=1", "optim.lr"),
        ("nonsense.key=1", "unknown key"),
        ("optim.lr=fast", "optim.lr"),
        ("optim.lr=-1", "optim.lr"),
        ("ema.end=1.1", "ema.end"),
        ("optim.warmup=1", "optim.warmup"),
        ("data.image_size=30", "nearest that does: 3"),
        ("data.batch_size=0", "data.batch_size"),
        ("data.crop_scale=[1, 0.3]", "data.crop_scale"),
        ("optim.lr", "KEY=VALUE"),
        ("optim.lr={", "the value can't be read"),
        ("seed=18446744073709551616", "seed"),
    ],
)
def test_a_mistake_names_the_key(override: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(preset("small"), overrides=[override])
    assert words in str(refused.value)


def test_batches_must_be_shared_out_evenly() -> None:
    with pytest.raises(UserError, match="not a multiple"):
        load_config(preset("small"), overrides=["data.batch_size=10", "optim.accumulate=4"])


def test_numbers_written_as_text_are_numbers() -> None:
    assert load_config(preset("small"), overrides=["optim.lr=1e-4"]).optim.lr == 1e-4  # YAML 1.1 reads a text


@given(st.sampled_from(known_keys()))
def test_a_misspelt_key_is_refused(key: str) -> None:
    with pytest.raises(UserError, match="unknown key"):
        load_config({}, overrides=[f"{key}x=1"] if not key.startswith("masks") else ["maks.name=random"])


def test_differences_are_named() -> None:
    old, new = load_config(preset("small")), load_config(preset("small"), overrides=["optim.lr=1e-3"])
    assert differences(old, new) == {"optim.lr": (1.5e-3, 1e-3)}


@pytest.mark.parametrize(("name", "millions"), [("vit_tiny", 5.4), ("vit_small", 21.6), ("vit_base", 85.6)])
def test_named_sizes_have_the_published_parameters(name: str, millions: float) -> None:
    config = load_config(preset("standard"), overrides=[f"model.name={name}"])
    encoder = build_ijepa(architecture_of(config)).context_encoder
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.15)
