"""The base of every service's configuration: one frozen class, read once from the environment."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Self

PREFIX = "STELLWERK_"


class SettingsError(Exception):
    """A variable is missing or has a value that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Fields are read from `STELLWERK_<FIELD>`; a field without default must be set.

    Fields are `str`, `int`, `float` or `bool` ("1"/"0"). docs/interfaces.md lists them.
    """

    namespace: str = "stellwerk"
    listen: str = "127.0.0.1:0"
    otlp_endpoint: str = ""
    otlp_key: str = ""
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Reads the fields; raises `SettingsError` naming every variable that is wrong."""
        values: dict[str, object] = {}
        problems: list[str] = []
        for field in fields(cls):
            variable = PREFIX + field.name.upper()
            text = environment.get(variable)
            if text is None:
                continue
            try:
                values[field.name] = _CONVERT[str(getattr(field.type, "__name__", field.type))](text)
            except ValueError:
                problems.append(f"{variable}={text!r} cannot be read")
        try:
            settings = cls(**values)  # type: ignore[arg-type]  # names and types were taken from the fields
        except TypeError:
            required = (field.name for field in fields(cls) if field.default is field.default_factory)
            problems += [f"{PREFIX}{name.upper()} is not set" for name in required if name not in values]
            raise SettingsError("; ".join(problems)) from None
        if problems:
            raise SettingsError("; ".join(problems))
        return settings


@dataclass(frozen=True, kw_only=True)
class StoreSettings(Settings):
    """What a service with a store of its own needs."""

    mongodb_uri: str
    nats_url: str
    registry_address: str
    vault_role_id: str
    vault_secret_id: str


@dataclass(frozen=True, kw_only=True)
class ServiceSettings(StoreSettings):
    """What every such service but `secrets` needs, which logs in to nobody."""

    secrets_address: str


_CONVERT: dict[str, Callable[[str], object]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda text: bool(int(text)),
}
