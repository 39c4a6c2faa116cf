"""Rules of workspaces, and the parts that come with each."""

from collections.abc import Sequence

from stellwerk_platform import names
from stellwerk_platform.checks import check_description, check_tags
from stellwerk_platform.errors import InvalidArgument
from stellwerk_platform.journal import Fact
from stellwerk_protos.registry.v1.datastores_pb2 import Datastore
from stellwerk_protos.registry.v1.workspaces_pb2 import CreateWorkspaceRequest, Workspace

DEFAULT_DATASTORE = "workspacedefault"
_DEFAULT_NAMESPACE = "stellwerk"
_CHANGEABLE = ("description", "tags", "default_datastore")


def new(request: CreateWorkspaceRequest, creator: str, namespace: str) -> Workspace:
    """A workspace with its parts; raises `InvalidArgument`."""
    names.check_id("workspaces", request.workspace_id)
    check_description(request.description)
    check_tags(request.tags)
    workspace = Workspace(
        name=f"workspaces/{request.workspace_id}",
        creator=creator,
        description=request.description,
        tags=request.tags,
    )
    give_parts(workspace, namespace)
    return workspace


def give_parts(workspace: Workspace, namespace: str) -> None:
    """Says where datastore, secrets and events of a workspace are."""
    workspace_id = names.id_of(workspace.name)
    workspace.default_datastore = f"{workspace.name}/datastores/{DEFAULT_DATASTORE}"
    # Installations in other namespaces may share a Vault (stellwerk_secrets/named/values.py).
    prefix = "" if namespace == _DEFAULT_NAMESPACE else f"{namespace}."
    workspace.vault_path = f"secret/stellwerk/workspaces/{prefix}{workspace_id}/secrets"
    workspace.journal_subject = f"{namespace}.journal.{workspace_id}.>"


def default_datastore(workspace: Workspace) -> Datastore:
    """The datastore that comes with a workspace: a prefix in the platform's own blob store."""
    return Datastore(
        name=f"{workspace.name}/datastores/{DEFAULT_DATASTORE}",
        creator=workspace.creator,
        prefix=names.id_of(workspace.name),
        description="The platform's own blob store.",
    )


def check_update(wanted: Workspace, paths: Sequence[str]) -> None:
    """Raises `InvalidArgument` for a field that cannot be changed, or a value that it cannot have."""
    if not paths or (unknown := [path for path in paths if path not in _CHANGEABLE]):
        shown = ", ".join(repr(path) for path in paths and unknown) or "nothing"
        raise InvalidArgument(
            "INVALID_UPDATE_MASK",
            f"The update mask names {shown}.",
            f"Name one or more of {', '.join(_CHANGEABLE)}.",
        )
    check_description(wanted.description)
    check_tags(wanted.tags)
    if "default_datastore" in paths:
        (workspace, _) = names.parse("workspaces/*/datastores/*", wanted.default_datastore)
        if workspace != names.id_of(wanted.name):
            raise InvalidArgument(
                "OTHER_WORKSPACE",
                f"{wanted.default_datastore} lies in another workspace than {wanted.name}.",
                "Name a datastore of the workspace itself.",
            )


def update(workspace: Workspace, wanted: Workspace, paths: Sequence[str]) -> Fact | None:
    """Takes over the named fields; None when that changes nothing."""
    before = Workspace()
    before.CopyFrom(workspace)
    for path in paths:
        workspace.ClearField(path)  # type: ignore[arg-type]  # checked by `check_update`
        if path == "tags":
            workspace.tags.update(wanted.tags)
        else:
            setattr(workspace, path, getattr(wanted, path))
    if workspace == before:
        return None
    return Fact("updated", "REQUESTED", f"Changed: {', '.join(sorted(set(paths)))}.")
