"""Serves `infermesh.auth.v1.TenantService`."""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import empty_pb2

from infermesh.auth.v1 import tenant_service_pb2 as pb
from infermesh.auth.v1 import tenant_service_pb2_grpc
from services.auth import errors
from services.auth.keys import utc_now
from services.auth.postgres_tenants import PostgresTenants, Project, Tenant

_Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_PAGE_SIZE = 100
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class TenantServicer(tenant_service_pb2_grpc.TenantServiceServicer):
    """Translates between the contract and `PostgresTenants`."""

    def __init__(self, tenants: PostgresTenants) -> None:
        self._tenants = tenants

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: _Context) -> pb.Tenant:
        """Creates a tenant."""
        made = Tenant(request.tenant, request.display_name, utc_now())
        await self._tenants.add_tenant(made)
        return _tenant(made)

    async def GetTenant(self, request: pb.GetTenantRequest, context: _Context) -> pb.Tenant:
        """Returns one tenant."""
        return _tenant(await self._tenants.tenant(request.tenant))

    async def ListTenants(
        self, request: pb.ListTenantsRequest, context: _Context
    ) -> pb.ListTenantsResponse:
        """Returns a page of tenants."""
        size = request.page_size or _DEFAULT_PAGE_SIZE
        found = await self._tenants.tenants(size + 1, _read_token(request.page_token))
        return pb.ListTenantsResponse(
            tenants=[_tenant(each) for each in found[:size]],
            next_page_token=_next([each.tenant for each in found], size),
        )

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, context: _Context) -> pb.Tenant:
        """Changes a tenant's display name."""
        return _tenant(await self._tenants.rename_tenant(request.tenant, request.display_name))

    async def DeleteTenant(
        self, request: pb.DeleteTenantRequest, context: _Context
    ) -> empty_pb2.Empty:
        """Deletes a tenant."""
        await self._tenants.delete_tenant(request.tenant)
        return empty_pb2.Empty()

    async def CreateProject(
        self, request: pb.CreateProjectRequest, context: _Context
    ) -> pb.Project:
        """Creates a project."""
        made = Project(request.tenant, request.project, request.display_name, utc_now())
        await self._tenants.add_project(made)
        return _project(made)

    async def GetProject(self, request: pb.GetProjectRequest, context: _Context) -> pb.Project:
        """Returns one project."""
        return _project(await self._tenants.project(request.tenant, request.project))

    async def ListProjects(
        self, request: pb.ListProjectsRequest, context: _Context
    ) -> pb.ListProjectsResponse:
        """Returns a page of a tenant's projects."""
        size = request.page_size or _DEFAULT_PAGE_SIZE
        after = _read_token(request.page_token)
        found = await self._tenants.projects(request.tenant, size + 1, after)
        return pb.ListProjectsResponse(
            projects=[_project(each) for each in found[:size]],
            next_page_token=_next([each.project for each in found], size),
        )

    async def UpdateProject(
        self, request: pb.UpdateProjectRequest, context: _Context
    ) -> pb.Project:
        """Changes a project's display name."""
        return _project(
            await self._tenants.rename_project(
                request.tenant, request.project, request.display_name
            )
        )

    async def DeleteProject(
        self, request: pb.DeleteProjectRequest, context: _Context
    ) -> empty_pb2.Empty:
        """Deletes a project."""
        await self._tenants.delete_project(request.tenant, request.project)
        return empty_pb2.Empty()


def _tenant(tenant: Tenant) -> pb.Tenant:
    message = pb.Tenant(tenant=tenant.tenant, display_name=tenant.display_name)
    message.create_time.FromDatetime(tenant.create_time)
    return message


def _project(project: Project) -> pb.Project:
    message = pb.Project(
        tenant=project.tenant, project=project.project, display_name=project.display_name
    )
    message.create_time.FromDatetime(project.create_time)
    return message


def _next(names: Sequence[str], size: int) -> str:
    if len(names) <= size:
        return ""
    return base64.urlsafe_b64encode(names[size - 1].encode()).decode().rstrip("=")


def _read_token(token: str) -> str:
    if not token:
        return ""
    try:
        name = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise errors.invalid_page_token() from None
    if not _NAME.fullmatch(name):
        raise errors.invalid_page_token()
    return name
