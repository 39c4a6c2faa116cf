"""Run configuration files of both formats: what they become, and what is refused and why."""

from pathlib import Path
from typing import Any

import pytest

from stellwerk import StellwerkError, jobs

# As azureml-core 1.61 writes it, with all its defaults.
RUNCONFIG = """
script: train.py
arguments: [--rate, 0.1, --name, a b]
target: local
framework: Python
communicator: None
maxRunDurationSeconds: 60
nodeCount: 1
priority:
environment:
  name: experiment env
  version:
  environmentVariables: {EXAMPLE_ENV_VAR: EXAMPLE_VALUE}
  python:
    userManagedDependencies: false
    interpreterPath: python
    condaDependenciesFile: conda.yml
    baseCondaEnvironment:
  docker:
    enabled: false
    baseImage: mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu20.04
    sharedVolumes: true
    shmSize: 2g
    arguments: []
    platform: {os: Linux, architecture: amd64}
  spark: {repositories: [], packages: [], precachePackages: true}
  databricks: {mavenLibraries: [], pypiLibraries: []}
  r:
history: {outputCollection: true, snapshotProject: true, directoriesToWatch: [logs]}
spark: {configuration: {}}
docker: {useDocker: false, sharedVolumes: true, arguments: [], shmSize: 2g}
hdi: {yarnDeployMode: cluster}
tensorflow: {workerCount: 1, parameterServerCount: 1}
mpi: {processCountPerNode: 1, nodeCount: 1}
pytorch: {communicationBackend: nccl, processCount:, nodeCount: 1}
paralleltask: {maxRetriesPerWorker: 0, workerCountPerNode: 1, terminalExitCodes:}
dataReferences: {}
data:
  digits:
    dataLocation: {dataset: {id:, name: digits, version: 2}, dataPath:, uri:}
    createOutputDirectories: false
    mechanism: download
    environmentVariableName:
    pathOnCompute:
    overwrite: false
outputData: {}
datacaches: []
sourceDirectoryDataStore:
amlcompute: {vmSize:, vmPriority:, retainCluster: false, name:, clusterMaxNodeCount:}
kubernetescompute: {instanceType:}
credentialPassthrough: false
environmentVariables: {WHO: me}
applicationEndpoints: {}
"""
CONDA = """channels: [conda-forge]
dependencies: [python=3.11.4, pip, {pip: [scikit-learn, pandas>=2]}]
"""
JOB = """
$schema: https://azuremlschemas.azureedge.net/latest/commandJob.schema.json
type: command
name: first
display_name: First
experiment_name: digits
description: text
tags: {a: 1, flag: true}
properties: {p: q}
command: python train.py --data ${{inputs.da-ta}} --rate ${{inputs.rate}} ${{ inputs.words }}
code: ../src
environment:
  conda_file: conda.yml
environment_variables: {WHO: me}
compute: azureml:local
limits: {timeout: 90}
resources: {instance_count: 1}
parent_job_name: parent-1
inputs:
  da-ta: {type: uri_folder, path: "azureml:digits:1", mode: ro_mount}
  rate: 0.5
  words: a 'b'
"""


def test_a_runconfig_with_all_its_defaults(tmp_path: Path) -> None:
    folder = tmp_path / ".azureml"
    folder.mkdir()
    (folder / "conda.yml").write_text(CONDA)
    (folder / "local.runconfig").write_text(RUNCONFIG)
    job = jobs.load(folder / "local.runconfig")
    assert job == jobs.Job(
        command="python train.py --rate 0.1 --name 'a b'",
        code=tmp_path,
        packages=["scikit-learn", "pandas>=2"],
        python_version="3.11",
        timeout_seconds=60.0,
        inputs={"digits": "digits:2"},
        variables={"EXAMPLE_ENV_VAR": "EXAMPLE_VALUE", "WHO": "me"},
    )


def test_a_command_job_with_all_that_makes_sense(tmp_path: Path) -> None:
    (tmp_path / "conda.yml").write_text(CONDA)
    (tmp_path / "job.yml").write_text(JOB)
    job = jobs.load(tmp_path / "job.yml")
    assert job == jobs.Job(
        command="python train.py --data \"$STELLWERK_INPUT_DA_TA\" --rate 0.5 'a '\"'\"'b'\"'\"''",
        code=tmp_path / "../src",
        packages=["scikit-learn", "pandas>=2"],
        python_version="3.11",
        experiment="digits",
        name="first",
        display_name="First",
        description="text",
        parent="parent-1",
        timeout_seconds=90.0,
        inputs={"da-ta": "digits:1"},
        tags={"a": "1", "flag": "true"},
        properties={"p": "q"},
        variables={"WHO": "me"},
    )
    arguments = job.arguments()
    assert "command" not in arguments
    assert arguments["parent"] == "parent-1"


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("nodeCount: 2", "JOB_KEY_UNSUPPORTED", "one node"),
        ("framework: PySpark", "JOB_KEY_UNSUPPORTED", "Spark"),
        ("communicator: OpenMpi", "JOB_KEY_UNSUPPORTED", "one process"),
        ("docker: {useDocker: true}", "JOB_KEY_UNSUPPORTED", "no container"),
        ("environment: {docker: {enabled: true}}", "JOB_KEY_UNSUPPORTED", "no container"),
        ("environment: {python: {userManagedDependencies: true}}", "JOB_KEY_UNSUPPORTED", "name one"),
        ("environment: {python: {condaDependenciesFile: none.yml}}", "PATH_NOT_FOUND", "none.yml"),
        ("amlcompute: {vmSize: D2}", "JOB_KEY_UNSUPPORTED", "target"),
        ("data: {x: {dataLocation: {uri: {path: 'https://x'}}}}", "JOB_KEY_UNSUPPORTED", "dataset create"),
        ("dataReferences: {x: {dataStoreName: y}}", "JOB_KEY_UNSUPPORTED", "dataset create"),
        ("envronment: {}", "JOB_KEY_UNKNOWN", "Did you mean 'environment'"),
        ("arguments: a", "JOB_FILE_INVALID", "list"),
        ("maxRunDurationSeconds: soon", "JOB_FILE_INVALID", "seconds"),
    ],
)
def test_what_a_runconfig_may_not_say(tmp_path: Path, text: str, reason: str, words: str) -> None:
    (tmp_path / "x.runconfig").write_text(f"script: a.py\n{text}\n")
    check(tmp_path / "x.runconfig", reason, words)


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("resources: {instance_count: 2}", "JOB_KEY_UNSUPPORTED", "one node"),
        ("resources: {shm_size: 2g}", "JOB_KEY_UNSUPPORTED", "no container"),
        ("distribution: {type: mpi}", "JOB_KEY_UNSUPPORTED", "one process"),
        ("outputs: {model: {type: uri_folder}}", "JOB_KEY_UNSUPPORTED", "./outputs"),
        ("services: {x: {type: ssh}}", "JOB_KEY_UNSUPPORTED", "ports"),
        ("identity: {type: managed}", "JOB_KEY_UNSUPPORTED", "token"),
        ("status: Running", "JOB_KEY_UNSUPPORTED", "writes it"),
        ("environment: {image: x}", "JOB_KEY_UNSUPPORTED", "no container"),
        ("inputs: {x: {type: mltable, path: 'azureml:x:1'}}", "JOB_KEY_UNSUPPORTED", "dataset"),
        ("inputs: {x: {path: ./data}}", "JOB_KEY_UNSUPPORTED", "dataset create"),
        ("inputs: {x: {path: 'azureml:x:1', mode: rw_mount}}", "JOB_KEY_UNSUPPORTED", "mode"),
        ("inputs: {x: {pth: x}}", "JOB_KEY_UNKNOWN", "Did you mean 'path'"),
        ("experiment: x", "JOB_KEY_UNKNOWN", "Did you mean 'experiment_name'"),
        ("limits: {timeout: -1}", "JOB_FILE_INVALID", "seconds"),
        ("tags: [a]", "JOB_FILE_INVALID", "mapping"),
        ("command: ${{outputs.model}}", "JOB_INPUT_UNKNOWN", "./outputs"),
        ("command: ${{inputs.a}}\ninputs: {b: 1}", "JOB_INPUT_UNKNOWN", "there are: b"),
    ],
)
def test_what_a_command_job_may_not_say(tmp_path: Path, text: str, reason: str, words: str) -> None:
    (tmp_path / "job.yml").write_text(f"type: command\n{text}\n")
    check(tmp_path / "job.yml", reason, words)


@pytest.mark.parametrize(
    ("dependency", "reason", "words"),
    [
        ("numpy=1.26", "CONDA_PACKAGE_UNSUPPORTED", "Move 'numpy' to the pip section"),
        ("python>=3.9", "CONDA_PACKAGE_UNSUPPORTED", "python=3.11"),
        ("pip: [-r other.txt]", "CONDA_PIP_OPTION", "-r other.txt"),
    ],
)
def test_conda_packages_are_refused_with_a_way_out(
    tmp_path: Path, dependency: str, reason: str, words: str
) -> None:
    text = f"type: command\nenvironment:\n  conda_file:\n    dependencies:\n    - {dependency}\n"
    (tmp_path / "job.yml").write_text(text)
    check(tmp_path / "job.yml", reason, words)


def check(path: Path, reason: str, words: str) -> Any:
    with pytest.raises(StellwerkError) as caught:
        jobs.load(path)
    assert caught.value.reason == reason, caught.value
    assert words in str(caught.value), caught.value
