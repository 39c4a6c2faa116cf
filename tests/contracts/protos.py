"""The RPCs of the platform, and which of their fields name resources, as their comments say."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from google.protobuf.descriptor import MethodDescriptor

import stellwerk_protos
from stellwerk_protos.access.v1 import access_pb2

_PROTOS = Path(__file__).resolve().parents[2] / "protos" / "stellwerk"
_COMMENTED = re.compile(
    r"((?:^[ \t]*//[^\n]*\n)+)^[ \t]*(?:repeated |optional )?string (\w+) = \d+", re.MULTILINE
)
_MESSAGE = re.compile(r"^message (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"(?:workspaces|users|nodes|deletions|revocations)/[\w{}/\" -]*[\w}]")


def methods() -> list[MethodDescriptor]:
    """Every RPC that names a permission."""
    return [method for method in _all() if permission_of(method)]


def permission_of(method: MethodDescriptor) -> str:
    """The permission that its proto names."""
    return str(method.GetOptions().Extensions[access_pb2.permission])


def _all() -> Iterator[MethodDescriptor]:
    for module in pkgutil.walk_packages(stellwerk_protos.__path__, "stellwerk_protos."):
        if module.name.endswith("_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                yield from service.methods


@cache
def name_fields() -> dict[tuple[str, str], str]:
    """By message and field, the form that its comment gives: `workspaces/{workspace}/runs/{run}`."""
    found = {}
    for file in _PROTOS.rglob("*.proto"):
        for message, body in _MESSAGE.findall(file.read_text()):
            for comment, field in _COMMENTED.findall(body):
                form = _NAME.search(comment.replace("\n", " ").replace("//", " "))
                if form:
                    found[message, field] = form.group()
    return found
