"""RPCs with a `google.api.http` rule as OpenAPI's operations."""

import re
from collections.abc import Iterator
from typing import Any

from bodies import Bodies
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2
from messages import WELL_KNOWN, Messages
from sources import Method, Sources

from infermesh.access.v1 import access_pb2

_F = descriptor_pb2.FieldDescriptorProto
_VARIABLE = re.compile(r"\{([a-z_.]+)(=\*\*)?\}")
_HTTP_BODY = ".google.api.HttpBody"
_MAX_QUERY_DEPTH = 3
_FIRST = (
    "OpenAIService",
    "OpenAIModelService",
    "EmbeddingsService",
    "ResponseService",
    "FileService",
    "BatchService",
    "AnthropicService",
    "OllamaService",
    "OllamaEmbeddingsService",
    "OllamaCatalogService",
    "front door",
)
"""What most people look for; the rest follows by name."""

Operation = dict[str, Any]


class Operations:
    """Makes the operations of all RPCs that can be called over REST."""

    def __init__(self, sources: Sources, messages: Messages, bodies: Bodies) -> None:
        self._sources = sources
        self._messages = messages
        self._bodies = bodies

    def all(self) -> tuple[dict[str, Any], list[dict[str, str]]]:
        """Returns the paths, and the services as tags."""
        paths: dict[str, dict[str, Operation]] = {}
        tags: dict[str, str] = {}
        for rpc in self._sources.methods():
            rule = rpc.method.options.Extensions[annotations_pb2.http]
            if not rpc.method.options.HasExtension(annotations_pb2.http):
                continue
            tags[_short(rpc.service)] = rpc.service_comment
            for number, binding in enumerate((rule, *rule.additional_bindings)):
                verb = binding.WhichOneof("pattern")
                template = getattr(binding, verb)
                path = _VARIABLE.sub(lambda match: f"{{{_parameter(match[1])}}}", template)
                operation = self._operation(rpc, binding, template)
                if number:
                    operation["operationId"] += f"_{number + 1}"
                paths.setdefault(path, {})[verb] = operation
        for path, item in self._bodies.paths.items():
            paths.setdefault(path, {}).update(item)
            tags.setdefault("front door", "What the front door answers by itself, without a key.")
        order = [*(name for name in _FIRST if name in tags), *sorted(tags.keys() - set(_FIRST))]
        listed = [{"name": name, "description": tags[name]} for name in order]
        return dict(sorted(paths.items())), listed

    def _operation(self, rpc: Method, rule: http_pb2.HttpRule, template: str) -> Operation:
        name = f"{rpc.service}.{rpc.method.name}"
        summary, _, _ = rpc.comment.partition(". ")
        roles = rpc.method.options.Extensions[access_pb2.allowed_roles]
        operation: Operation = {
            "operationId": f"{_short(rpc.service)}_{rpc.method.name}",
            "tags": [_short(rpc.service)],
            "summary": summary.replace("\n", " ").rstrip("."),
            "description": rpc.comment,
            "x-infermesh-rpc": name,
            "x-infermesh-roles": [_role(number) for number in roles],
        }
        bound = [match[1] for match in _VARIABLE.finditer(template)]
        parameters = [self._path_parameter(rpc, field, template) for field in bound]
        parameters += self._query(rpc.method.input_type, {*bound, rule.body}, rule.body)
        if parameters:
            operation["parameters"] = parameters
        if rule.body:
            operation["requestBody"] = self._request(rpc, rule.body, bound)
        operation["responses"] = {
            "200": self._response(rpc),
            "default": {
                "description": "The call is refused, or failed.",
                "content": {"application/json": {"schema": _error_of(template)}},
            },
        }
        return operation

    def _path_parameter(self, rpc: Method, path: str, template: str) -> dict[str, Any]:
        type_name = rpc.method.input_type
        *outer, last = path.split(".")
        for name in outer:
            type_name = self._field(type_name, name).type_name
        schema = self._messages.field(type_name, self._field(type_name, last))
        description = schema.pop("description", "")
        if f"{{{path}=**}}" in template:
            description += " Slashes in it may stand as they are or as `%2F`."
        schema.setdefault("minLength", 1)
        return {
            "name": _parameter(path),
            "in": "path",
            "required": True,
            "description": description,
            "schema": schema,
        }

    def _query(self, type_name: str, taken: set[str], body: str) -> list[dict[str, Any]]:
        if body == "*" or type_name == _HTTP_BODY or type_name in WELL_KNOWN:
            return []
        return list(self._query_fields(type_name, "", taken, _MAX_QUERY_DEPTH))

    def _query_fields(
        self, type_name: str, prefix: str, taken: set[str], depth: int
    ) -> Iterator[dict[str, Any]]:
        for field in self._messages.find(type_name).field:
            name = prefix + field.name
            if name in taken or self._messages.is_map(field):
                continue
            is_list = field.label == _F.LABEL_REPEATED
            if field.type == _F.TYPE_MESSAGE and field.type_name not in WELL_KNOWN:
                # A list of messages has no form in a query.
                if depth and not is_list:
                    yield from self._query_fields(field.type_name, f"{name}.", taken, depth - 1)
                continue
            schema = self._messages.field(type_name, field)
            yield {
                "name": name,
                "in": "query",
                "description": schema.pop("description", ""),
                "schema": schema,
            }

    def _request(self, rpc: Method, body: str, bound: list[str]) -> dict[str, Any]:
        name, type_name = f"{rpc.service}.{rpc.method.name}", rpc.method.input_type
        content = self._bodies.content(name, "request")
        if content is None and type_name == _HTTP_BODY:
            return {"content": {"*/*": {"schema": {}}}, "x-infermesh-undescribed": True}
        if content is None:
            prefix = "" if body == "*" else f"{body}."
            if body != "*":
                type_name = self._field(type_name, body).type_name
            without = [path.removeprefix(prefix) for path in bound if path.startswith(prefix)]
            content = {"application/json": {"schema": self._messages.whole(type_name, without)}}
        return {"required": True, "content": content}

    def _response(self, rpc: Method) -> dict[str, Any]:
        name, type_name = f"{rpc.service}.{rpc.method.name}", rpc.method.output_type
        content = self._bodies.content(name, "response")
        if content is not None:
            return {"description": "The answer.", "content": content}
        if type_name == _HTTP_BODY:
            undescribed = {"content": {"*/*": {"schema": {}}}, "x-infermesh-undescribed": True}
            return {"description": "The answer.", **undescribed}
        schema = self._messages.reference(type_name)
        if rpc.method.server_streaming:
            schema = {"type": "array", "items": schema}
        return {"description": "The answer.", "content": {"application/json": {"schema": schema}}}

    def _field(self, type_name: str, name: str) -> descriptor_pb2.FieldDescriptorProto:
        return next(field for field in self._messages.find(type_name).field if field.name == name)


def _parameter(path: str) -> str:
    # Tools take a dot in a name for a field of something.
    return path.replace(".", "_")


def _short(service: str) -> str:
    return service.rpartition(".")[2]


def _role(number: int) -> str:
    return str(access_pb2.Role.Name(number)).removeprefix("ROLE_").lower()


def _error_of(path: str) -> dict[str, str]:
    # As envoy/front.lua has it.
    dialect = "OpenAI"
    if path.startswith("/v1/messages"):
        dialect = "Anthropic"
    elif path.startswith("/api/"):
        dialect = "Ollama"
    return {"$ref": f"#/components/schemas/{dialect}Error"}
