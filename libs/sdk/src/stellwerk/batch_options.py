"""How a batch deployment scores, as people write it: words and numbers in place of the message's fields."""

from typing import TypedDict

from stellwerk.errors import invalid
from stellwerk_protos.compute.v1 import workloads_pb2

OUTPUT_ACTIONS = {
    "append-row": workloads_pb2.BATCH_OUTPUT_ACTION_APPEND_ROW,
    "by-file": workloads_pb2.BATCH_OUTPUT_ACTION_BY_FILE,
    "summary-only": workloads_pb2.BATCH_OUTPUT_ACTION_SUMMARY_ONLY,
}


class BatchOptions(TypedDict, total=False):
    """What is left out is as the deployment has it; of a new deployment, as `BatchSettings` says."""

    # Files in one call of run(mini_batch).
    mini_batch_size: int
    # Mini-batches that a replica works on at a time.
    max_concurrency_per_replica: int
    # How often a mini-batch that failed is tried again.
    max_retries: int
    # Seconds that one call of run(mini_batch) may take.
    timeout_seconds: int
    # A job fails when more files than this have failed; -1: however many.
    error_threshold: int
    # `append-row` (one file with all rows), `by-file` or `summary-only`; "_" for "-" is understood.
    output_action: str
    # Name of the one file; its ending says how it is written: .csv or .jsonl.
    output_file_name: str


def batch_settings(options: BatchOptions) -> workloads_pb2.BatchSettings:
    """The message; raises `StellwerkError` for an unknown option or output action."""
    plain = dict(options)
    action = plain.pop("output_action", "append-row")
    unknown = plain.keys() - workloads_pb2.BatchSettings.DESCRIPTOR.fields_by_name.keys()
    if unknown:
        known = ", ".join(BatchOptions.__annotations__)
        raise invalid("INVALID_BATCH_OPTION", f"There is no option {min(unknown)!r}.", f"There are {known}.")
    settings = workloads_pb2.BatchSettings(**plain)  # type: ignore[arg-type]  # as BatchOptions says
    if "output_action" in options:
        settings.output_action = _output_action(str(action))
    return settings


def _output_action(word: str) -> workloads_pb2.BatchOutputAction.ValueType:
    found = OUTPUT_ACTIONS.get(word.replace("_", "-"))
    if found is None:
        known = ", ".join(OUTPUT_ACTIONS)
        raise invalid("INVALID_OUTPUT_ACTION", f"There is no output action {word!r}.", f"Use one of {known}.")
    return found
