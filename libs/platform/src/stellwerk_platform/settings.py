"""The base of every service's configuration: one frozen class, read once from the environment."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

PREFIX = "STELLWERK_"
_IN_VAULT = "kept in Vault"


class SettingsError(Exception):
    """A variable is missing or has a value that cannot be read."""


def kept_in_vault() -> Any:
    """A field that Vault keeps for the service, for where its variable is not set."""
    return field(default="", metadata={_IN_VAULT: True})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Fields are read from `STELLWERK_<FIELD>`; a field without default must be set.

    Fields are `str`, `int`, `float` or `bool` ("1"/"0"). docs/interfaces.md lists them.
    """

    namespace: str = "stellwerk"
    listen: str = "127.0.0.1:0"
    # Where grpc.health.v1 alone is served without TLS, for probes that have no certificate.
    health_listen: str = ""
    otlp_endpoint: str = ""
    otlp_key: str = ""
    # Where metrics go, if not where spans do; the key of the one is never shown to the other.
    otlp_metrics_endpoint: str = ""
    otlp_metrics_key: str = ""
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Reads the fields; raises `SettingsError` naming every variable that is wrong."""
        values: dict[str, object] = {}
        problems: list[str] = []
        for item in fields(cls):
            variable = PREFIX + item.name.upper()
            text = environment.get(variable)
            if text is None:
                continue
            try:
                values[item.name] = _CONVERT[str(getattr(item.type, "__name__", item.type))](text)
            except ValueError:
                problems.append(f"{variable}={text!r} cannot be read")
        try:
            settings = cls(**values)  # type: ignore[arg-type]  # names and types were taken from the fields
        except TypeError:
            required = (item.name for item in fields(cls) if item.default is item.default_factory)
            problems += [f"{PREFIX}{name.upper()} is not set" for name in required if name not in values]
            raise SettingsError("; ".join(problems)) from None
        if problems:
            raise SettingsError("; ".join(problems))
        return settings


@dataclass(frozen=True, kw_only=True)
class IdentitySettings(Settings):
    """What every process with a certificate of its own needs: its login at Vault.

    `vault_url` has a default for tests of single parts, which need no certificate.
    """

    vault_url: str = ""
    vault_role_id: str
    vault_secret_id: str
    certificate_seconds: float = 24 * 3600.0

    @classmethod
    def kept_in_vault(cls) -> list[str]:
        """The fields that Vault may have."""
        return [item.name for item in fields(cls) if item.metadata.get(_IN_VAULT)]

    def completed(self, kept: Mapping[str, str]) -> Self:
        """With what Vault keeps for the service, where no variable says otherwise.

        Raises `SettingsError` naming every value that is in neither.
        """
        wanted = self.kept_in_vault()
        values: dict[str, Any] = {n: getattr(self, n) or str(kept.get(n, "")) for n in wanted}
        if missing := [PREFIX + name.upper() for name, value in values.items() if not value]:
            raise SettingsError(f"{', '.join(missing)}: not set, and Vault keeps none for this service")
        return replace(self, **values)


@dataclass(frozen=True, kw_only=True)
class BusSettings(IdentitySettings):
    """What every service needs that speaks to NATS."""

    nats_url: str = kept_in_vault()
    # The service's nkey; empty where the URL has user and password.
    nats_seed: str = ""

    def completed(self, kept: Mapping[str, str]) -> Self:
        """The seed belongs to the address that Vault keeps, not to one that a variable gave."""
        seed = self.nats_seed or ("" if self.nats_url else str(kept.get("nats_seed", "")))
        return replace(super().completed(kept), nats_seed=seed)


@dataclass(frozen=True, kw_only=True)
class StoreSettings(BusSettings):
    """What a service with a store of its own needs."""

    registry_address: str
    mongodb_uri: str = kept_in_vault()


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
