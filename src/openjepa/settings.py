"""Putting a configuration together from layers: a preset, a file, `KEY=VALUE` texts, options.

Later layers win, and unknown keys are refused with a suggestion:

    config = load_config(preset("small"), overrides=["optim.lr=1e-3", "data.batch_size=128"])
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml
from pydantic import ValidationError

from openjepa.config import Config, Section
from openjepa.errors import UserError

Settings = TypeVar("Settings", bound=Section)


@overload
def load_config(
    base: Mapping[str, Any],
    *,
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> Config: ...
@overload
def load_config(
    base: Mapping[str, Any],
    *,
    schema: type[Settings],
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> Settings: ...
def load_config(
    base: Mapping[str, Any],
    *,
    schema: type[Section] = Config,
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> Section:
    """Put a configuration together: base, then the file, then ``KEY=VALUE`` overrides, then changes by dotted key.

    Args:
        base: Nested settings to start from: a preset, or a saved configuration.
        schema: What they are settings of: a run, by default.
        file: YAML file with nested or dotted keys.
        overrides: Texts such as ``optim.lr=1e-3``; the value is read as YAML.
        changes: Dotted keys and values, from options of the command line.

    Raises:
        UserError: A file that can't be read, an unknown key (with a suggestion), a wrong type or value.
    """
    tree = _copy(base)
    layers = asked_for(file=file, overrides=overrides, changes=changes)
    masks = tree.get("masks", {})
    if layers.get("masks.name", masks.get("name")) != masks.get("name"):
        tree["masks"] = {}  # the base's settings are those of another sampler
    for key, value in layers.items():
        set_key(tree, key, value, schema=schema)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def asked_for(
    *,
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the layers of `load_config` ask for, by dotted key; the last layer that names a key wins.

    Raises:
        UserError: A file or a value that can't be read.
    """
    layers: list[tuple[str, Any]] = []
    if file is not None:
        layers += _flatten(read_yaml(file))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text!r}: expected KEY=VALUE, for example --set optim.lr=1e-3")
        try:
            layers.append((key.strip(), yaml.safe_load(value)))
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or "it is no YAML"
            raise UserError(
                f"--set {text!r}: the value can't be read: {reason}; put texts with special characters in quotes, "
                f"as in --set '{key.strip()}=\"…\"'"
            ) from None
    layers += (changes or {}).items()
    return dict(layers)


def dump_config(config: Section) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file holding a mapping.

    Raises:
        UserError: It can't be read, is not YAML, or is not a mapping.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: can't be read as YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"--config {path}: expected a mapping of keys, got {type(tree).__name__}")
    return tree


def set_key(tree: dict[str, Any], key: str, value: Any, *, schema: type[Section] = Config) -> None:
    """Set a dotted key in nested settings, refusing keys that the configuration does not have.

    Raises:
        UserError: An unknown key, with the nearest known ones.
    """
    known = known_keys(schema)
    section, _, _ = key.partition(".")
    of_sampler = schema is Config and section == "masks" and key.count(".") == 1
    if key not in known and not of_sampler:
        close = difflib.get_close_matches(key, known, n=4, cutoff=0.5)
        leaf = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
        hint = ", ".join(dict.fromkeys(leaf + close)) or "see docs/configuration.md"
        raise UserError(f"unknown key {key!r}: did you mean {hint}?")
    *parents, name = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = value


def known_keys(schema: type[Section] = Config) -> list[str]:
    """Every dotted key of the configuration (the settings of a mask sampler come on top)."""
    return [key for key, _ in _flatten(schema().model_dump(mode="json"))]


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with the old and the new value."""
    before, after = (dict(_flatten(config.model_dump(mode="json"))) for config in (old, new))
    keys = dict.fromkeys([*before, *after])
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        pairs += _flatten(value, f"{key}.") if isinstance(value, Mapping) else [(key, value)]
    return pairs


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _explain(error: ValidationError) -> str:
    """One line a fault: dotted key, what was got, what is allowed."""
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        value = f", got {fault['input']!r}" if key and not isinstance(fault["input"], dict) else ""
        lines.append(f"{key}: {message}{value}" if key else message)
    return "\n".join(lines)
