"""PolicyService over gRPC."""

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf import empty_pb2, field_mask_pb2
from google.protobuf.message import Message

from infermesh.errors.v1 import errors_pb2
from infermesh.routing.v1 import policy_service_pb2 as pb
from infermesh.routing.v1 import policy_service_pb2_grpc
from services.kit.audit_resources import Lookup
from services.kit.errors import MeshError
from services.kit.guard import validate
from services.routing import store
from services.routing.book import Book
from services.routing.contracts import invalid, policy_of
from services.routing.policy import BUILT_IN
from services.routing.store import Document, DocumentStore

_Context = grpc.aio.ServicerContext[Any, Any]

_FIELDS = (
    "scorers",
    "picker",
    "load_factor",
    "max_pressure",
    "allow_labels",
    "deny_labels",
    "hedging",
)


class PolicyServicer(policy_service_pb2_grpc.PolicyServiceServicer):
    """Implements PolicyService.

    Args:
        book: What holds now.
        documents: Where changes are written.
    """

    def __init__(self, book: Book, documents: DocumentStore) -> None:
        self._book = book
        self._documents = documents

    async def ListPolicies(
        self, request: pb.ListPoliciesRequest, context: _Context
    ) -> pb.ListPoliciesResponse:
        """Lists the policies by name."""
        policies = self._book.policies
        return pb.ListPoliciesResponse(policies=[policies[name] for name in sorted(policies)])

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: _Context) -> pb.Policy:
        """Returns one policy."""
        return self._policy(request.name)

    async def CreatePolicy(self, request: pb.CreatePolicyRequest, context: _Context) -> pb.Policy:
        """Creates a policy."""
        policy = request.policy
        policy.built_in = False
        policy_of(policy)
        policy.create_time.GetCurrentTime()
        policy.update_time.CopyFrom(policy.create_time)
        added = policy.name not in BUILT_IN and await self._documents.add(_document(policy))
        if not added:
            raise invalid("policy.name", f"There is a policy `{policy.name}` already.")
        await self._reload()
        return policy

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, context: _Context) -> pb.Policy:
        """Changes a policy."""
        policy = pb.Policy()
        policy.CopyFrom(self._changeable(request.policy.name))
        merge(request.policy, policy, request.update_mask, _FIELDS, "policy")
        validate(policy)
        policy_of(policy)
        policy.update_time.GetCurrentTime()
        if not await self._documents.replace(_document(policy)):
            raise _not_found(policy.name)
        await self._reload()
        return policy

    async def DeletePolicy(
        self, request: pb.DeletePolicyRequest, context: _Context
    ) -> empty_pb2.Empty:
        """Deletes a policy that no model has."""
        self._changeable(request.name)
        for model, route in self._book.routes.items():
            if route.policy == request.name:
                raise MeshError(
                    errors_pb2.ERROR_REASON_FAILED_PRECONDITION,
                    f"The model `{model}` has the policy `{request.name}`.",
                    metadata={"model": model},
                )
        if not await self._documents.delete(store.POLICY, request.name):
            raise _not_found(request.name)
        await self._reload()
        return empty_pb2.Empty()

    async def ListModelRoutes(
        self, request: pb.ListModelRoutesRequest, context: _Context
    ) -> pb.ListModelRoutesResponse:
        """Lists the models' routes by model."""
        routes = self._book.routes
        return pb.ListModelRoutesResponse(routes=[routes[model] for model in sorted(routes)])

    async def SetModelRoute(
        self, request: pb.SetModelRouteRequest, context: _Context
    ) -> pb.ModelRoute:
        """Sets a model's policy and fallbacks."""
        route = request.route
        if route.policy and route.policy not in self._book.policies:
            raise invalid("route.policy", f"There is no policy `{route.policy}`.")
        if route.model in route.fallback_models:
            raise invalid("route.fallback_models", "A model cannot fall back to itself.")
        route.update_time.GetCurrentTime()
        body = route.SerializeToString(deterministic=True)
        await self._documents.put(Document(store.ROUTE, route.model, body))
        await self._reload()
        return route

    async def DeleteModelRoute(
        self, request: pb.DeleteModelRouteRequest, context: _Context
    ) -> empty_pb2.Empty:
        """Gives a model the defaults again."""
        if not await self._documents.delete(store.ROUTE, request.model):
            raise MeshError(
                errors_pb2.ERROR_REASON_NOT_FOUND,
                f"The model `{request.model}` has no route of its own.",
            )
        await self._reload()
        return empty_pb2.Empty()

    def routes_before(self) -> Mapping[str, Lookup]:
        """Returns what the audit log asks before a model's route changes; no RPC tells of one."""

        def find(model: str) -> pb.ModelRoute:
            return self._book.routes.get(model, pb.ModelRoute())

        async def of_set(request: pb.SetModelRouteRequest, context: _Context) -> pb.ModelRoute:
            return find(request.route.model)

        async def of_delete(
            request: pb.DeleteModelRouteRequest, context: _Context
        ) -> pb.ModelRoute:
            return find(request.model)

        return {"SetModelRoute": of_set, "DeleteModelRoute": of_delete}

    def _policy(self, name: str) -> pb.Policy:
        policy = self._book.policies.get(name)
        if policy is None:
            raise _not_found(name)
        return policy

    def _changeable(self, name: str) -> pb.Policy:
        policy = self._policy(name)
        if policy.built_in:
            raise MeshError(
                errors_pb2.ERROR_REASON_FAILED_PRECONDITION,
                f"The policy `{name}` is built in and cannot be changed.",
            )
        return policy

    async def _reload(self) -> None:
        # Other replicas hear of it from the store; this one need not wait for that.
        await self._book.reload(self._documents)


def merge(
    source: Message,
    target: Message,
    mask: field_mask_pb2.FieldMask,
    fields: tuple[str, ...],
    prefix: str,
) -> None:
    """Copies the fields of a mask, or all fields where it is empty.

    Raises:
        MeshError: `INVALID_ARGUMENT` for a path that is none of the fields.
    """
    for path in mask.paths:
        if path not in fields:
            raise invalid("update_mask", f"`{path}` is no field of the {prefix} that can change.")
    for name in mask.paths or fields:
        target.ClearField(name)
    kept = type(source)()
    kept.CopyFrom(source)
    for descriptor, _ in source.ListFields():
        if descriptor.name not in (mask.paths or fields):
            kept.ClearField(descriptor.name)
    target.MergeFrom(kept)


def _document(policy: pb.Policy) -> Document:
    return Document(store.POLICY, policy.name, policy.SerializeToString(deterministic=True))


def _not_found(name: str) -> MeshError:
    return MeshError(errors_pb2.ERROR_REASON_NOT_FOUND, f"There is no policy `{name}`.")
