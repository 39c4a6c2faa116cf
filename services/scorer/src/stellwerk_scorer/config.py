"""The scorer's settings, read once from the environment; docs/interfaces.md, "A replica"."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from stellwerk_platform.settings import Settings as PlatformSettings
from stellwerk_platform.settings import SettingsError

# Azure's names; scripts and templates that move here set them.
_AZURE = {
    "SCORING_TIMEOUT_MS": "STELLWERK_SCORER_TIMEOUT_MS",
    "WORKER_COUNT": "STELLWERK_SCORER_WORKERS",
    "WORKER_TIMEOUT": "STELLWERK_SCORER_INIT_TIMEOUT_SECONDS",
    "AML_CORS_ORIGINS": "STELLWERK_SCORER_CORS_ORIGINS",
    "HTTP_X_MS_SERVER_VERSION": "STELLWERK_SCORER_SERVER_VERSION",
}
# Those of Azure's that Azure's configuration file may have and user code or the worker reads.
_AZURE_ONLY = (
    *("AML_APP_ROOT", "AZUREML_SOURCE_DIRECTORY", "AZUREML_ENTRY_SCRIPT", "AZUREML_MODEL_DIR"),
    *("SERVICE_NAME", "SERVICE_VERSION", "SERVICE_PATH_PREFIX", "WORKSPACE_NAME"),
)
_MAX_WORKERS = 64
_LOOPBACK = ("127.", "localhost:", "[::1]:", "unix:")


@dataclass(frozen=True, kw_only=True)
class Settings(PlatformSettings):
    """`STELLWERK_SCORER_…`; sizes in bytes, times in the unit that the name ends with."""

    # host:port, unix:/path, or several with commas between them
    scorer_http_listen: str
    scorer_grpc_listen: str
    scorer_python: str
    # Empty serves the model's folder without a script.
    scorer_script: str = ""
    # PEM files; with them `host:port` is TLS 1.2 or newer, without them it has to be this machine's loopback.
    scorer_certificate: str = ""
    scorer_key: str = ""
    # Missing only if `scorer_local`: then everybody may score, and addresses must be loopback.
    secrets_address: str = ""
    scorer_local: bool = False
    # Whose token opens this replica; empty takes that of any endpoint.
    scorer_endpoint: str = ""
    scorer_model_name: str = "model"
    scorer_model_version: str = ""
    scorer_timeout_ms: int = 60_000
    scorer_init_timeout_seconds: int = 300
    scorer_max_body_bytes: int = 100_000_000
    scorer_drain_seconds: int = 20
    scorer_workers: int = 1
    # Of private memory, for each worker; 0 sets no bound.
    scorer_memory_bytes: int = 0
    scorer_max_queue: int = 1000
    # 1 scores each request by itself.
    scorer_max_batch_size: int = 1
    scorer_max_batch_wait_ms: float = 5.0
    # Where mini-batches lie; set for a batch deployment, which answers nothing else.
    scorer_batch_folder: str = ""
    scorer_cors_origins: str = ""
    # Only if `scorer_local`: where the worker waits for a debugger; 0: it does not.
    scorer_debug_port: int = 0
    scorer_server_version: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Reads the fields, also by Azure's names and from Azure's configuration file."""
        found = {**configuration_file(environment), **environment}
        for azure, own in _AZURE.items():
            if azure in found:
                found.setdefault(own, found[azure])
        if "AZUREML_ENTRY_SCRIPT" in found and not found.get("STELLWERK_SCORER_SCRIPT"):
            root = found.get("AML_APP_ROOT", "")
            found["STELLWERK_SCORER_SCRIPT"] = str(Path(root, found["AZUREML_ENTRY_SCRIPT"]).absolute())
        settings = super().from_environment(found)
        settings._check()
        return settings

    def _check(self) -> None:
        addresses = [*self.scorer_http_listen.split(","), self.scorer_grpc_listen]
        if self.scorer_local and not all(item.strip().startswith(_LOOPBACK) for item in addresses):
            raise SettingsError(f"STELLWERK_SCORER_LOCAL=1 needs addresses on loopback, not {addresses}")
        self._check_certificate(addresses)
        if self.scorer_debug_port and not self.scorer_local:
            raise SettingsError("STELLWERK_SCORER_DEBUG_PORT needs STELLWERK_SCORER_LOCAL=1")
        if not self.scorer_local and not self.secrets_address:
            raise SettingsError("STELLWERK_SECRETS_ADDRESS is not set")
        bounds = {
            "timeout_ms": (1, 86_400_000),
            "init_timeout_seconds": (1, 86_400),
            "max_body_bytes": (1, 2**32 - 2**20),
            "workers": (1, _MAX_WORKERS),
            "memory_bytes": (0, 2**50),
            "debug_port": (0, 65_535),
            "max_queue": (1, 1_000_000),
            "max_batch_size": (1, 10_000),
            "max_batch_wait_ms": (0, 60_000),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, f"scorer_{name}")
            if not low <= value <= high:
                variable = f"STELLWERK_SCORER_{name.upper()}"
                raise SettingsError(f"{variable}={value} is not between {low} and {high}")

    def _check_certificate(self, addresses: Sequence[str]) -> None:
        """Keys and data go through a network encrypted or not at all."""
        if bool(self.scorer_certificate) != bool(self.scorer_key):
            raise SettingsError("STELLWERK_SCORER_CERTIFICATE and STELLWERK_SCORER_KEY belong together")
        reached = [item for item in addresses if not item.strip().startswith(_LOOPBACK)]
        if reached and not self.scorer_certificate:
            where = " and ".join(reached)
            raise SettingsError(f"{where} needs STELLWERK_SCORER_CERTIFICATE and STELLWERK_SCORER_KEY")


def configuration_file(environment: Mapping[str, str]) -> dict[str, str]:
    """Azure's variables from the JSON file that may stand for them."""
    folders = [environment.get("AML_APP_ROOT", "")]
    script = environment.get("STELLWERK_SCORER_SCRIPT", "")
    folders += [str(Path(script).parent)] if script else []
    paths = [Path(folder, "config.json") for folder in folders if folder]
    named = environment.get("AZUREML_CONFIG_FILE", "")
    for path in [Path(named), *paths] if named else paths:
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            if str(path) != named:
                continue  # somebody else's file of that name
            raise SettingsError(f"AZUREML_CONFIG_FILE={named} cannot be read: {error}") from None
        if isinstance(document, dict):
            wanted = (*_AZURE, *_AZURE_ONLY)
            return {name: str(document[name]) for name in wanted if name in document}
    return {}
