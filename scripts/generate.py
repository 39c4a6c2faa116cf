"""Generates `protos/python/src/stellwerk_protos` from `protos/`.

The proto packages are called `stellwerk.<service>.v1`, and so is the package that
users import; the generated code therefore lives in `stellwerk_protos`, and its
imports are rewritten to match.

With `--check` nothing is written: the exit code says whether the code is up to date.
"""

import re
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "protos"
TARGET = SOURCE / "python" / "src" / "stellwerk_protos"
BIN = Path(sys.executable).parent

# A quoted name is a service's name on the wire, unless it is that of a module.
_IMPORT = re.compile(r"(?:(?<!['\"])|(?=[\w.]+_pb2))\bstellwerk\.([a-z_]+)\.v1(?=[. ])")
_TENSOR_IMPORT = re.compile(r"\b(from|import) inference\b")
_TENSOR_NAME = re.compile(r"(?<![\w./\"'])inference\.grpc_predict_v2_pb2")


def rewrite(text: str) -> str:
    """Moves absolute imports of generated modules below `stellwerk_protos`."""
    lines = []
    for line in text.split("\n"):
        if "AddSerializedFile" not in line and '"/' not in line and "'/" not in line:
            line = _IMPORT.sub(r"stellwerk_protos.\1.v1", line)
            line = _TENSOR_IMPORT.sub(r"\1 stellwerk_protos.open_inference", line)
            line = _TENSOR_NAME.sub("stellwerk_protos.open_inference.grpc_predict_v2_pb2", line)
        lines.append(line)
    return "\n".join(lines)


def compile_protos(out: Path) -> None:
    """Runs protoc with the Python, gRPC and mypy plugins."""
    protos = sorted(str(path) for path in SOURCE.rglob("*.proto") if "python" not in path.parts)
    arguments = [
        "protoc",
        f"-I{SOURCE}",
        f"-I{files('grpc_tools') / '_proto'}",
        *(f"--plugin=protoc-gen-{name}={BIN / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")),
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *protos,
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed")


def render() -> dict[Path, str]:
    """All generated files: path below `TARGET` and content."""
    rendered: dict[Path, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        compile_protos(out)
        for path in sorted([*out.rglob("*.py"), *out.rglob("*.pyi")]):
            top, *rest = path.relative_to(out).parts
            place = Path(*rest) if top == "stellwerk" else Path("open_inference", *rest)
            rendered[place] = rewrite(path.read_text())
    packages = {parent for place in rendered for parent in place.parents if parent != Path()}
    return rendered | {package / "__init__.py": "" for package in packages}


def current() -> dict[Path, str]:
    """The generated files that are there; the package's own `__init__.py` is written by hand."""
    paths = (
        path for path in TARGET.rglob("*.py*") if path.suffix in (".py", ".pyi") and path.parent != TARGET
    )
    return {path.relative_to(TARGET): path.read_text() for path in paths}


def stale() -> list[Path]:
    """The files that are missing, different or left over."""
    wanted, there = render(), current()
    return sorted(place for place in wanted.keys() | there.keys() if wanted.get(place) != there.get(place))


def write(wanted: dict[Path, str]) -> None:
    """Brings the target folder to `wanted`, touching only what differs (type checkers cache by file)."""
    there = current()
    for place in there.keys() - wanted.keys():
        (TARGET / place).unlink()
    for folder in {place.parts[0] for place in there} - {place.parts[0] for place in wanted}:
        shutil.rmtree(TARGET / folder)
    for place, text in wanted.items():
        if there.get(place) != text:
            (TARGET / place).parent.mkdir(parents=True, exist_ok=True)
            (TARGET / place).write_text(text)


def main() -> None:
    if "--check" not in sys.argv[1:]:
        write(render())
        return
    if places := stale():
        names = "\n  ".join(str(place) for place in places)
        sys.exit(f"Generated code is not what protos/ says; run `make generate` and commit:\n  {names}")
    print("generated code is up to date")


if __name__ == "__main__":
    main()
