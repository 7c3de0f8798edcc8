"""Finds every contract of the mesh, so that nothing has to be listed twice."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.descriptor import ServiceDescriptor

import infermesh


def services() -> Sequence[ServiceDescriptor]:
    """Returns all services of the package `infermesh`, by name.

    Importing their modules puts them into the default descriptor pool, which reflection reads.
    """
    found: list[ServiceDescriptor] = []
    for root in map(Path, infermesh.__path__):
        for path in root.rglob("*_pb2.py"):
            parts = path.relative_to(root).with_suffix("").parts
            module = importlib.import_module(".".join(("infermesh", *parts)))
            found.extend(module.DESCRIPTOR.services_by_name.values())
    return sorted(found, key=lambda service: str(service.full_name))
