"""Serves a model folder without a scoring script: scikit-learn and MLflow's `python_function`.

`/score` takes `{"data": rows}` (or `inputs`, `instances`, or what MLflow calls `input_data`,
`dataframe_split`, `dataframe_records`), with scikit-learn also `"method"`, and answers
`{"<method>": [...]}`. An Open Inference request with one tensor gives the rows, with several
a column each; the outputs that it asks for name the methods, `predict` by default.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import batching, inputs, loading, results, swagger
from .inputs import BadInput
from .loading import LoadError

_SUFFIXES = (".pkl", ".pickle", ".joblib")
_ROWS = ("data", "inputs", "instances", "input_data", "dataframe_split", "dataframe_records")
_METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function", "transform")
_NUMPY_NAMES = {datatype: name for name, datatype in results.DATATYPES.items()}


def load() -> Predictor:
    """The model below `AZUREML_MODEL_DIR`; raises `LoadError`."""
    root = os.environ.get("AZUREML_MODEL_DIR", "")
    if not os.path.isdir(root):
        raise LoadError("MODEL_NOT_FOUND", f"There is no model folder AZUREML_MODEL_DIR={root!r}.", _tree())
    mlmodel = sorted(_find(root, lambda name: name == "MLmodel"))
    try:
        if mlmodel:
            return _mlflow(os.path.dirname(mlmodel[0]))
        return _sklearn(_only(root))
    except LoadError:
        raise
    except BaseException as error:
        problem = loading.load_error(error, "MODEL_NOT_LOADED", "while its model was loaded")
        problem.details += _tree()
        raise problem from None


def _only(root: str) -> str:
    files = sorted(_find(root, lambda name: name.endswith(_SUFFIXES)))
    if len(files) == 1:
        return files[0]
    shown = ", ".join(os.path.relpath(path, root) for path in files) or "none"
    raise LoadError(
        "MODEL_NOT_FOUND",
        "Without a scoring script the model's folder must hold an MLmodel file, or one file that ends with "
        f"{', '.join(_SUFFIXES)}; it holds {shown}.",
        _tree(),
    )


def _find(root: str, is_wanted: Callable[[str], bool]) -> list[str]:
    return [
        os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names if is_wanted(name)
    ]


def _tree() -> str:
    return "".join(f"{line}\n" for line in loading.model_tree())


class Predictor:
    """A loaded model; `methods` are what can be asked of it, each gets an array or a table of rows."""

    def __init__(
        self,
        methods: dict[str, Callable[..., Any]],
        platform: str,
        columns: list[str],
        width: int | None,
        types: dict[str, Any] | None = None,
        predicts: str = "FP64",
        tensor: Any = None,
    ) -> None:
        import numpy

        self._numpy = numpy
        self._methods = methods
        self._platform = platform
        self._columns = columns
        self._width = width
        # numpy's type of each column, where the model is particular about it
        self._types = types or {}
        self._predicts = predicts
        # numpy's type of the one array that the model takes, where it takes an array and no table
        self._tensor = tensor
        self._known: dict[bytes, Any] = {}

    @property
    def description(self) -> dict[str, Any]:
        """What the front must know of the model."""
        shape = [-1] if self._width is None else [-1, self._width]
        return {
            "mode": "model",
            "tensors": "binary",
            "envelope": False,
            "batches": True,
            "swagger": swagger.documents(None),
            "platform": self._platform,
            "inputs": [{"name": "data", "datatype": "FP64", "shape": shape}],
            "outputs": [
                {"name": name, "datatype": self._predicts, "shape": [-1]}
                if name == "predict"
                else {"name": name, "datatype": "FP64", "shape": [-1, -1]}
                for name in self._methods
            ],
        }

    def prepare(self, is_tensors: bool, meta: bytes, payload: bytes) -> Callable[[], Any]:
        """The call that answers a request; raises `BadInput`."""
        if is_tensors:
            tensors, wanted = self._tensors(meta, payload)
            return functools.partial(self._call, self._rows(tensors), wanted)
        return self._json_call(inputs.parse_json(payload))

    def merge(
        self, is_tensors: bool, metas: Sequence[bytes], payloads: Sequence[bytes]
    ) -> tuple[Callable[[], Any], list[int]] | None:
        """One call for several requests, and the rows of each."""
        if not is_tensors:
            merged = batching.merge([inputs.parse_json(payload) for payload in payloads], set(_ROWS))
            return None if merged is None else (self._json_call(merged.document), merged.rows)
        parsed = [self._tensors(meta, payload) for meta, payload in zip(metas, payloads)]  # noqa: B905
        first, wanted = parsed[0]
        if any(other != wanted or tensors.keys() != first.keys() for tensors, other in parsed):
            return None
        if any(array.ndim == 0 for tensors, _ in parsed for array in tensors.values()):
            return None
        rows = [len(next(iter(tensors.values()))) for tensors, _ in parsed]
        whole = {name: self._numpy.concatenate([tensors[name] for tensors, _ in parsed]) for name in first}
        return functools.partial(self._call, self._rows(whole), wanted), rows

    def blame(self, error: BaseException, payload: bytes) -> BadInput | None:
        """What a model refuses with ValueError or TypeError is the input's fault: there is no user code."""
        if isinstance(error, (ValueError, TypeError, KeyError)) or type(error).__name__ == "MlflowException":
            return BadInput("INVALID_INPUT", f"The model does not take this input: {str(error)[:1000]}")
        return None

    def _call(self, rows: Any, wanted: Sequence[str]) -> dict[str, Any]:
        rows = self._convert(rows)
        return {name: self._array(self._methods[name](rows)) for name in wanted}

    def _convert(self, rows: Any) -> Any:
        """Whole numbers in the type that the model wants: JSON does not tell 1 from 1.0."""
        if self._tensor is not None:
            array = rows.to_numpy() if hasattr(rows, "to_numpy") else rows
            return array.astype(self._tensor) if _fits(array.dtype, self._tensor) else array
        for name, dtype in self._types.items():
            if name in rows and rows[name].dtype.kind in "iu" and dtype.kind in "iuf":
                rows[name] = rows[name].astype(dtype)
        return rows

    def _array(self, value: Any) -> Any:
        array = self._numpy.asarray(value)
        return array.tolist() if array.dtype.kind in "OUS" else array

    def _tensors(self, meta: bytes, payload: bytes) -> tuple[dict[str, Any], list[str]]:
        known = self._known.get(meta)
        if known is None:
            document = json.loads(meta)
            known = document["inputs"], self._wanted(document["outputs"])
            if len(self._known) < 256:
                self._known[meta] = known
        tensors, position = {}, 0
        for name, datatype, shape, size in known[0]:
            raw = payload[position : position + size]
            position += size
            tensors[name] = self._decode(raw, datatype, shape)
        return tensors, known[1]

    def _decode(self, raw: bytes, datatype: str, shape: Sequence[int]) -> Any:
        if datatype == "BYTES":
            texts, position = [], 0
            while position < len(raw):
                end = position + 4 + int.from_bytes(raw[position : position + 4], "little")
                texts.append(raw[position + 4 : end].decode())
                position = end
            return self._numpy.array(texts, dtype=object).reshape(shape)
        if datatype == "BF16":
            wide = self._numpy.frombuffer(raw, "<u2").astype("<u4") << 16
            return wide.view("<f4").reshape(shape)
        # A copy, for a model may not take an array that it could not write to.
        return self._numpy.frombuffer(raw, _NUMPY_NAMES[datatype]).reshape(shape).copy()

    def _wanted(self, outputs: Sequence[str]) -> list[str]:
        unknown = [name for name in outputs if name not in self._methods]
        if unknown:
            offered = ", ".join(self._methods)
            raise BadInput(
                "OUTPUT_NOT_FOUND", f"There is no output {', '.join(unknown)}; there are {offered}."
            )
        return list(outputs) or ["predict"]

    def _rows(self, tensors: dict[str, Any]) -> Any:
        if len(tensors) == 1 and not (self._columns and set(tensors) <= set(self._columns)):
            (array,) = tensors.values()
            return self._table(array) if self._columns else array
        import pandas  # type: ignore[import-untyped]  # the environment has it, or not

        return pandas.DataFrame({name: array.reshape(len(array)) for name, array in tensors.items()})

    def _table(self, array: Any) -> Any:
        import pandas

        return pandas.DataFrame(array, columns=self._columns)

    def _json_call(self, document: Any) -> Callable[[], Any]:
        if not isinstance(document, dict):
            document = {"data": document}
        found = [name for name in _ROWS if name in document]
        if not found:
            raise BadInput("INVALID_INPUT", 'The body must be a JSON object with the rows: {"data": [[…]]}.')
        method = document.get("method", "predict")
        wanted = self._wanted([str(method)])
        # A table by itself is what MLflow writes as input_example.json.
        rows = document if found[0] == "data" and "columns" in document else document[found[0]]
        parameters = document.get("params")
        if parameters is not None and not isinstance(parameters, dict):
            raise BadInput("INVALID_INPUT", '"params" must be a JSON object.')
        return lambda: self._records(self._from_json(rows), wanted[0], parameters or {})

    def _records(self, rows: Any, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """The answer as JSON; of a table its rows as objects, as MLflow's server does."""
        rows = self._convert(rows)
        predict = self._methods[method]
        value = predict(rows, params=parameters) if parameters else predict(rows)
        is_table = hasattr(value, "columns") and hasattr(value, "to_dict")
        return {method: value.to_dict("records") if is_table else self._array(value)}

    def _from_json(self, rows: Any) -> Any:
        if isinstance(rows, dict) and "data" in rows:
            import pandas

            return pandas.DataFrame(
                rows["data"], index=rows.get("index"), columns=rows.get("columns", self._columns or None)
            )
        if isinstance(rows, dict) or (isinstance(rows, list) and rows and isinstance(rows[0], dict)):
            import pandas

            if isinstance(rows, dict) and not any(isinstance(cell, list) for cell in rows.values()):
                rows = [rows]
            return pandas.DataFrame(rows)
        array = self._numpy.array(rows)
        return self._table(array) if self._columns and array.ndim == 2 else array


def _fits(given: Any, wanted: Any) -> bool:
    """Whether numbers of one numpy type may become those of another."""
    return (given.kind in "iu" and wanted.kind in "iuf") or given.kind == wanted.kind == "f"


def _sklearn(path: str) -> Predictor:
    model = _unpickle(path)
    methods = {name: getattr(model, name) for name in _METHODS if callable(getattr(model, name, None))}
    if not methods:
        offered = ", ".join(_METHODS)
        raise LoadError(
            "MODEL_NOT_SUPPORTED", f"The {type(model).__name__} in {path} has none of the methods {offered}."
        )
    columns = [str(name) for name in getattr(model, "feature_names_in_", [])]
    width = getattr(model, "n_features_in_", None)
    return Predictor(methods, "sklearn", columns, width, predicts=_datatype_of_classes(model))


def _datatype_of_classes(model: Any) -> str:
    """What `predict` gives: a classifier its classes, a clustering its labels, a regression numbers."""
    classes = getattr(model, "classes_", getattr(model, "labels_", None))
    dtype = getattr(classes, "dtype", None)
    if dtype is None:
        return "FP64"
    return results.DATATYPES.get(str(dtype), "BYTES")


def _unpickle(path: str) -> Any:
    try:
        import joblib
    except ModuleNotFoundError:
        with open(path, "rb") as file:
            return pickle.load(file)
    return joblib.load(path)


def _mlflow(folder: str) -> Predictor:
    try:
        import mlflow.pyfunc  # type: ignore[import-not-found]  # the environment has it, or not
    except ModuleNotFoundError:
        return _mlflow_without_mlflow(folder)
    model = mlflow.pyfunc.load_model(folder)
    schema = model.metadata.get_input_schema()
    columns: list[str] = []
    types: dict[str, Any] = {}
    if schema is not None and schema.has_input_names() and not schema.is_tensor_spec():
        columns = [str(name) for name in schema.input_names()]
        types = dict(zip(columns, schema.numpy_types()))  # noqa: B905  # Python 3.9 has no strict=
    tensor = None
    if schema is not None and schema.is_tensor_spec() and not schema.has_input_names():
        (tensor,) = schema.numpy_types()
    methods = {"predict": model.predict}
    return Predictor(methods, "mlflow", columns, len(columns) or None, types, tensor=tensor)


def _mlflow_without_mlflow(folder: str) -> Predictor:
    """scikit-learn models need no MLflow: their folder names the pickle."""
    with open(os.path.join(folder, "MLmodel"), encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    settings = dict(line.split(": ", 1) for line in lines if ": " in line)
    if settings.get("loader_module") != "mlflow.sklearn":
        raise LoadError(
            "MODULE_NOT_FOUND",
            "The model is an MLflow model, and the environment does not have the module 'mlflow': "
            "add mlflow to it.",
        )
    path = os.path.join(folder, settings.get("model_path", "model.pkl"))
    if not os.path.exists(path):
        raise LoadError("MODEL_NOT_FOUND", f"MLmodel names the file {path}, which is missing.", _tree())
    print(
        "stellwerk-scorer: the environment has no mlflow; its scikit-learn model is loaded", file=sys.stderr
    )
    return _sklearn(path)
