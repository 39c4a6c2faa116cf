"""The command line as a user runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STELLWERK = Path(sys.executable).with_name("stellwerk")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits"


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below a folder in which others work: what goes meanwhile is left out."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                if path.is_file():
                    yield path, path.read_bytes()
            except FileNotFoundError:
                continue


@dataclass(frozen=True)
class Outcome:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """`NOT_FOUND` of `error[NOT_FOUND]: …`."""
        _, _, rest = self.err.partition("error[")
        return rest.partition("]")[0]

    def check_clear(self, reason: str, code: int, *words: str) -> None:
        """An error with this reason, a cure and no traceback."""
        assert (self.reason, self.code) == (reason, code), self
        assert "cure:" in self.err
        assert "Traceback" not in self.err + self.out
        for word in words:
            assert word in self.err, self


@dataclass(frozen=True)
class Cli:
    """Runs `stellwerk` with an environment of its own."""

    environment: Mapping[str, str]

    @classmethod
    def of(cls, status: Mapping[str, Any], workspace: str) -> "Cli":
        """For a stack, by the addresses that its status prints."""
        return cls(
            {
                **{name: value for name, value in os.environ.items() if not name.startswith("STELLWERK_")},
                "STELLWERK_GRPC_ADDRESS": status["grpc_address"],
                "STELLWERK_GATEWAY_URL": status["gateway_url"],
                "STELLWERK_API_KEY_FILE": status["owner_key_file"],
                "STELLWERK_WORKSPACE": workspace,
            }
        )

    def start(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """Starts a command whose output is read later."""
        return subprocess.Popen(
            [str(STELLWERK), *map(str, arguments)],
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path, timeout_seconds: float = 240) -> Outcome:
        """Runs a command to its end."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Outcome(process.returncode, out, err)

    def ok(self, *arguments: str | Path) -> str:
        """Runs a command that must succeed and returns what it printed."""
        outcome = self.run(*arguments)
        assert outcome.code == 0, outcome
        return outcome.out

    def json(self, *arguments: str | Path) -> Any:
        """Runs a command that must succeed and print one JSON document."""
        return json.loads(self.ok(*arguments, "--output", "json"))

    def with_(self, **environment: str) -> "Cli":
        """The same with other variables."""
        return Cli({**self.environment, **environment})
