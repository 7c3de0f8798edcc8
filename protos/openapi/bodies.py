"""What stands in the bodies of RPCs that take or give a `google.api.HttpBody`.

`schemas/*.yaml` are JSON Schema, in our own words from each API's documented fields:

    schemas:     {Name: schema, …}           components; `$ref: Name` refers to one
    operations:  {service.Method: …}         `request`, `response`: content type → schema
    paths:       {path: item, …}             what no RPC answers
"""

from pathlib import Path
from typing import Any

import yaml

Content = dict[str, Any]


class Bodies:
    """The schemas of a folder.

    Attributes:
        schemas: Components by name.
        operations: By `service.Method`, without `infermesh.`.
        paths: What Envoy answers by itself.
    """

    def __init__(self, folder: Path) -> None:
        self.schemas: dict[str, Any] = {}
        self.operations: dict[str, dict[str, Any]] = {}
        self.paths: dict[str, Any] = {}
        for file in sorted(folder.glob("*.yaml")):
            said = _resolved(yaml.safe_load(file.read_text()))
            for part in ("schemas", "operations", "paths"):
                mine, its = getattr(self, part), said.get(part, {})
                if twice := mine.keys() & its.keys():
                    raise ValueError(f"{file.name}: {sorted(twice)} is there twice")
                mine.update(its)

    def content(self, rpc: str, part: str) -> Content | None:
        """Returns the content of an RPC's `request` or `response`; None where nothing says."""
        said = self.operations.get(rpc.removeprefix("infermesh."), {}).get(part)
        if said is None:
            return None
        return {kind: _media(schema) for kind, schema in said.items()}


def _media(schema: dict[str, Any]) -> dict[str, Any]:
    schema = dict(schema)
    example = schema.pop("example", None)
    return {"schema": schema} | ({} if example is None else {"example": example})


def _resolved(value: Any) -> Any:
    """Returns a value with `$ref: Name` written out."""
    if isinstance(value, dict):
        return {
            key: f"#/components/schemas/{each}"
            if key == "$ref" and isinstance(each, str) and not each.startswith("#")
            else _resolved(each)
            for key, each in value.items()
        }
    return [_resolved(each) for each in value] if isinstance(value, list) else value
