"""From what people type to resource names: `digits:1` -> `workspaces/demo/datasets/digits/versions/1`.

Whether an id is valid is the services' decision; here it is only put in its place.
"""

from stellwerk.errors import invalid


def workspace(name: str) -> str:
    """`demo` or `workspaces/demo` -> `workspaces/demo`."""
    return name if name.startswith("workspaces/") else f"workspaces/{name}"


def resource(parent: str, collection: str, name: str) -> str:
    """An id below `parent`, or a full name as it is."""
    return name if name.startswith("workspaces/") else f"{parent}/{collection}/{name}"


def version(parent: str, collection: str, reference: str) -> str:
    """`digits:1`, `digits@latest`, `digits` (the latest) or a full name; the prefix `azureml:` is dropped."""
    if reference.startswith("workspaces/"):
        return reference
    reference = reference.removeprefix("azureml:")
    for separator in (":", "@"):
        name, found, number = reference.partition(separator)
        if found:
            break
    if not name or (found and not number):
        raise invalid("INVALID_REFERENCE", f"{reference!r} names no version.", "Write NAME:NUMBER or NAME.")
    return f"{parent}/{collection}/{name}/versions/{number or 'latest'}"


def last(name: str) -> str:
    """The id at the end of a name."""
    return name.rsplit("/", 1)[-1]


def short_version(name: str) -> str:
    """`…/models/digits/versions/1` -> `digits:1`."""
    parts = name.split("/")
    return f"{parts[-3]}:{parts[-1]}" if len(parts) >= 3 and parts[-2] == "versions" else last(name)
