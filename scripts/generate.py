"""Generates `protos/python/src/stellwerk_protos` from `protos/`.

The proto packages are called `stellwerk.<service>.v1`, and so is the package that
users import; the generated code therefore lives in `stellwerk_protos`, and its
imports are rewritten to match.
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
GENERATED = ("access", "common", "registry", "runs", "compute", "secrets", "inference", "telemetry")

_IMPORT = re.compile(r"\bstellwerk\.([a-z_]+)\.v1(?=[. ])")
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
        f"--mypy_out={out}",
        f"--mypy_grpc_out={out}",
        *protos,
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        compile_protos(out)
        for name in (*GENERATED, "open_inference"):
            shutil.rmtree(TARGET / name, ignore_errors=True)
        for path in sorted([*out.rglob("*.py"), *out.rglob("*.pyi")]):
            relative = path.relative_to(out)
            parts = relative.parts[1:] if relative.parts[0] == "stellwerk" else ("open_inference", *relative.parts[1:])
            target = TARGET.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(rewrite(path.read_text()))
    for folder_path in (path for path in TARGET.rglob("*") if path.is_dir() and path.name != "__pycache__"):
        (folder_path / "__init__.py").touch()


if __name__ == "__main__":
    main()
