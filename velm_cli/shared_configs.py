"""Configs from folders that the command names (`--config-dir`, `hydra.searchpath`): options, not programs.

Whoever shares an experiment file shares a choice of options. Hydra would take more from it: callbacks, launchers and
loggers are Python objects that it builds, `hydra.job.env_set` changes the environment, `${oc.env:...}` reads it, and
aliases of aliases fill the memory. All of that is refused, unless it stands in the command itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra._internal.hydra
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from velm_cli.errors import UserError

DEEPEST, LARGEST = 16, 10_000  # levels and values of a config, its aliases written out
OF_A_COMMAND = ("runtime", "overrides", "mode", "searchpath", "job.config_name", "job.override_dirname", "job.name")
HARMLESS = r"(?:(?:hydra|now|oc\.select):)?"  # resolvers that say nothing of the machine


def guard(conf_dir: Path) -> None:
    """From now on Hydra takes only options from configs outside `conf_dir`. UserError where one holds more."""

    class Repository(ConfigRepository):
        def load_config(self, config_path: str) -> ConfigResult | None:
            source = self._find_object_source(config_path, ObjectType.CONFIG)
            if isinstance(source, ConfigSource) and source.scheme() == "file" and source.path != str(conf_dir):
                _refuse_explosives(Path(source.path, source._normalize_file_name(config_path)))
            return super().load_config(config_path)

    class Loader(ConfigLoaderImpl):
        def __init__(self, config_search_path: ConfigSearchPath) -> None:
            super().__init__(config_search_path)
            self.repository = Repository(config_search_path)

        def load_configuration(
            self,
            config_name: str | None,
            overrides: list[str],
            run_mode: RunMode,
            from_shell: bool = True,
            validate_sweep_overrides: bool = True,
        ) -> DictConfig:
            try:
                config = super().load_configuration(
                    config_name, overrides, run_mode, from_shell, validate_sweep_overrides
                )
            except RecursionError:
                raise UserError(
                    "configs name each other in a circle: look at the defaults of those in the command, as experiment="
                ) from None
            if folders := list(_folders(config, conf_dir)):
                _refuse_hydras(config, config_name, overrides, run_mode, conf_dir, folders)
                _refuse_environment(config, overrides, folders)
                _refuse_pipes(config, overrides, folders)
            return config

    hydra._internal.hydra.ConfigLoaderImpl = Loader  # type: ignore[attr-defined, misc]


def _folders(config: DictConfig, conf_dir: Path) -> Iterator[str]:
    """Where configs were looked for that are neither velm's nor an installed package's."""
    for source in config.hydra.runtime.config_sources:
        named = source.provider in ("main", "command-line") or source.provider.startswith("hydra.searchpath")
        if named and source.path != str(conf_dir):
            yield source.path


def _refuse_hydras(
    config: DictConfig,
    config_name: str | None,
    overrides: list[str],
    run_mode: RunMode,
    conf_dir: Path,
    folders: list[str],
) -> None:
    """Hydra's own options must be those of the same command without these folders."""
    own = [override for override in overrides if re.match(r"[+~]*hydra[./]", override)]
    own = [override for override in own if not override.startswith("hydra.searchpath=")]
    loader = ConfigLoaderImpl(create_config_search_path(str(conf_dir)))
    try:
        without = loader.load_configuration(config_name, own, run_mode, validate_sweep_overrides=False)
    except HydraException as error:
        line = " ".join(str(error).split())
        raise UserError(f"{folders[0]}: Hydra's own configs are not taken from there ({line[:200]})") from None
    expected, found = dict(_flat(without.hydra)), dict(_flat(config.hydra))
    for key in sorted({**expected, **found}):
        if not key.startswith(OF_A_COMMAND) and expected.get(key) != found.get(key):
            raise UserError(
                f"{' or '.join(folders)}: a config there sets hydra.{key}, which can run programs; if you want that, "
                "say it in the command itself"
            )


def _refuse_environment(config: DictConfig, overrides: list[str], folders: list[str]) -> None:
    """Interpolations that do more than to repeat another option must stand in the command."""
    typed = "\n".join(overrides)
    for key, value in _flat(config):
        if not isinstance(value, str) or key.startswith("hydra."):
            continue
        rest, before = value, ""
        while rest != before:  # from the inside out
            before, rest = rest, re.sub(r"\$\{" + HARMLESS + r"[^${}:]*\}", "", rest)
        if "${" in rest and value not in typed:
            raise UserError(
                f"{' or '.join(folders)}: a config there sets {key}={value}, which asks for more than another option's "
                "value; if you want that, say it in the command itself"
            )


def _refuse_pipes(config: DictConfig, overrides: list[str], folders: list[str]) -> None:
    """`dataset.pipes` lets data sources run commands."""
    typed = any(re.match(r"\+{0,2}dataset\.pipes=", override) for override in overrides)
    if OmegaConf.select(config, "dataset.pipes", default=False) and not typed:
        raise UserError(
            f"{' or '.join(folders)}: a config there sets dataset.pipes, so that its data could run commands; if you "
            "want that, say dataset.pipes=true in the command itself"
        )


def _flat(node: Any) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all leaves; empty mappings and lists are leaves."""
    plain: Any = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    items = plain.items() if isinstance(plain, dict) else enumerate(plain)
    for key, value in items:
        if isinstance(value, dict | list) and value:
            yield from ((f"{key}.{rest}", leaf) for rest, leaf in _flat(value))
        else:
            yield str(key), value


def _refuse_explosives(file: Path) -> None:
    """A few aliases of aliases fill the memory, and a few thousand brackets take PyYAML minutes."""
    size_of: dict[str | None, int] = {}  # of what an anchor stands for
    open_ones: list[tuple[str | None, int]] = [(None, 0)]  # anchor and size so far of the collections around
    try:
        for event in yaml.parse(file.read_text(encoding="utf-8")):
            size = 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_ones.append((event.anchor, 0))
                size = 0
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, size = open_ones.pop()
                size_of[anchor] = size
            elif isinstance(event, yaml.AliasEvent):
                size = size_of.get(event.anchor, 1)
            anchor, so_far = open_ones.pop()
            open_ones.append((anchor, so_far + size))
            if len(open_ones) > DEEPEST or so_far + size > LARGEST:
                raise UserError(f"{file} is not a config: more than {DEEPEST} levels or {LARGEST:,} values")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from None
