"""Run configurations of Azure ML's SDK v1, `.runconfig` (contract 4.6).

The SDK writes every key with its default. A default that means nothing here is accepted, a value that
somebody chose is followed or refused.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stellwerk.errors import invalid
from stellwerk.jobs import conda
from stellwerk.jobs.model import Job, mapping, names_list, refuse, seconds, text, texts, unsupported

_NO_CONTAINER = "a run is a process with an environment of packages, in no container"
_ONE_NODE = "a run is one process on one node"
_COLLECTED = "./outputs is always kept, logs are always followed, the source folder always travels"
_SPARK = "there is no Spark"
_DATA = "register the data with `stellwerk dataset create` and name it under data"
_FOLLOWED = {
    *("script", "arguments", "command", "target", "maxRunDurationSeconds", "environment", "data"),
    # `secrets` is not of Azure: the secrets of the workspace that the command may read.
    *("environmentVariables", "secrets"),
}
# Key -> its defaults (besides nothing at all) and why another value cannot be followed.
_DEFAULTS: dict[str, tuple[tuple[Any, ...], str]] = {
    "framework": (("Python", "PyTorch", "TensorFlow"), _SPARK),
    "communicator": (("None",), _ONE_NODE),
    "nodeCount": ((1,), _ONE_NODE),
    "priority": ((), "there are no priorities"),
    "history": (
        ({"outputCollection": True, "snapshotProject": True, "directoriesToWatch": ["logs"]},),
        _COLLECTED,
    ),
    "spark": (({"configuration": {}},), _SPARK),
    "docker": (
        ({"useDocker": False, "sharedVolumes": True, "arguments": [], "shmSize": "2g"},),
        _NO_CONTAINER,
    ),
    "hdi": (({"yarnDeployMode": "cluster"},), "there is no HDInsight"),
    "tensorflow": (({"workerCount": 1, "parameterServerCount": 1},), _ONE_NODE),
    "mpi": (({"processCountPerNode": 1, "nodeCount": 1},), _ONE_NODE),
    "pytorch": (({"communicationBackend": "nccl", "processCount": None, "nodeCount": 1},), _ONE_NODE),
    "paralleltask": (
        ({"maxRetriesPerWorker": 0, "workerCountPerNode": 1, "terminalExitCodes": None},),
        _ONE_NODE,
    ),
    "dataReferences": ((), _DATA),
    "outputData": ((), "what the script writes to ./outputs is kept with the run"),
    "datacaches": ((), "inputs are cached on the node by their content"),
    "sourceDirectoryDataStore": ((), "the source folder travels to the blob store by itself"),
    "amlcompute": (({"retainCluster": False},), "name a compute as target"),
    "autoClusterComputeSpecification": ((), "name a compute as target"),
    "kubernetescompute": (({"instanceType": None},), "name a compute as target"),
    "credentialPassthrough": ((False,), "a run has a token of its own"),
    "applicationEndpoints": ((), "runs open no ports"),
}
_ENVIRONMENT_KEYS = {
    "name",
    "version",
    "environmentVariables",
    "python",
    "docker",
    "spark",
    "databricks",
    "r",
}
_ENVIRONMENT_REASONS = {
    "assetId": "name an environment of this workspace",
    "inferencingStackVersion": "it is for scoring",
}
_PYTHON_KEYS = {"userManagedDependencies", "interpreterPath", "condaDependenciesFile", "baseCondaEnvironment"}
_DATA_KEYS = {
    *("dataLocation", "createOutputDirectories", "mechanism", "environmentVariableName", "pathOnCompute"),
    *("overwrite", "options"),
}


def read(given: Mapping[str, Any], path: Path) -> Job:
    """A job from the keys of a file; raises `StellwerkError`."""
    where = str(path)
    refuse(given, _FOLLOWED | set(_DEFAULTS), {}, where)
    for key, (defaults, why) in _DEFAULTS.items():
        value = given.get(key)
        if value not in (None, "", [], {}) and not any(_same(value, default) for default in defaults):
            raise unsupported(key, where, why)
    # Such files lie in .azureml below the source folder.
    folder = path.resolve().parent
    job = Job(
        code=folder.parent if folder.name == ".azureml" else folder,
        compute=text(given, "target", "local"),
        timeout_seconds=seconds(given, "maxRunDurationSeconds"),
        variables=texts(given, "environmentVariables"),
        secrets=names_list(given, "secrets"),
    )
    _read_environment(job, mapping(given, "environment"), path)
    for name, value in mapping(given, "data").items():
        job.inputs[name] = _dataset(value, f"data.{name} in {where}")
    job.command = job.fill(_command(given, where), {})
    return job


def _same(value: Any, default: Any) -> bool:
    """Whether a value is the default, keys that are left out or empty being defaults too."""
    if not isinstance(value, dict) or not isinstance(default, dict):
        return bool(value == default)
    return all(item in (None, "", [], {}) or item == default.get(key) for key, item in value.items())


def _command(given: Mapping[str, Any], where: str) -> str:
    command = given.get("command")
    if isinstance(command, list):
        command = shlex.join(map(str, command))
    if command:
        return str(command)
    arguments = given.get("arguments") or []
    if not isinstance(arguments, list):
        raise invalid("JOB_FILE_INVALID", f"arguments in {where} is not a list.", "Write - ARGUMENT lines.")
    script = text(given, "script")
    if not script:
        raise invalid("JOB_FILE_INVALID", f"{where} names neither script nor command.", "Name one of them.")
    return shlex.join(["python", script, *(str(argument) for argument in arguments)])


def _read_environment(job: Job, given: Mapping[str, Any], path: Path) -> None:
    where = f"environment in {path}"
    chosen = {key: value for key, value in given.items() if value not in (None, "", [], {})}
    refuse(chosen, _ENVIRONMENT_KEYS, _ENVIRONMENT_REASONS, where)
    job.variables = {**texts(given, "environmentVariables"), **job.variables}
    if mapping(given, "docker").get("enabled"):
        raise unsupported("docker.enabled", where, _NO_CONTAINER)
    for key, why in (("spark", _SPARK), ("databricks", "there is no Databricks"), ("r", "there is no R")):
        if any(value and value is not True for value in mapping(given, key).values()):
            raise unsupported(key, where, why)
    python = mapping(given, "python")
    refuse(python, _PYTHON_KEYS, {}, f"python of the {where}")
    if python.get("userManagedDependencies"):
        raise unsupported(
            "userManagedDependencies", where, "the node makes the environment; name one or its packages"
        )
    if python.get("baseCondaEnvironment"):
        raise unsupported("baseCondaEnvironment", where, "environments are made of pip packages")
    if text(python, "interpreterPath", "python") not in ("python", "python3"):
        raise unsupported("interpreterPath", where, "the environment has its own interpreter")
    if file := text(python, "condaDependenciesFile"):
        # Written next to the run configuration, or named from the source folder.
        beside = path.parent / Path(file).name
        job.python_version, job.packages = conda.load(beside if beside.is_file() else job.code / file)
        return
    version = text(given, "version")
    job.environment = text(given, "name") + (f":{version}" if version else "")


def _dataset(given: Any, where: str) -> str:
    if not isinstance(given, dict):
        raise invalid("JOB_FILE_INVALID", f"{where} is not a mapping.", "Write dataLocation: ….")
    refuse(given, _DATA_KEYS, {}, where)
    location = mapping(given, "dataLocation")
    chosen = {key for key, value in location.items() if value not in (None, "", {}, [])}
    if chosen != {"dataset"}:
        raise unsupported("dataLocation", where, _DATA)
    if text(given, "mechanism", "download").lower() not in ("download", "mount", "direct", ""):
        raise unsupported("mechanism", where, "inputs are brought to the node and read there")
    for key in ("createOutputDirectories", "pathOnCompute", "environmentVariableName"):
        if given.get(key):
            raise unsupported(key, where, "an input lies where STELLWERK_INPUT_<NAME> says")
    dataset = mapping(location, "dataset")
    if not text(dataset, "name"):
        raise unsupported("dataset.id", where, "datasets are named here; write name and version")
    version = text(dataset, "version")
    return text(dataset, "name") + (f":{version}" if version else "")
