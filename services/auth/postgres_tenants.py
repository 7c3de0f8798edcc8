"""Tenants and their projects in PostgreSQL, schema `auth`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.auth import errors
from services.kit.database import transaction

DEFAULT = "default"
"""The tenant that always exists, and the project that each tenant always has."""

metadata = sa.MetaData(schema="auth")

_tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
)

_projects = sa.Table(
    "projects",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
)

# Keys bring their tenant and project with them, all at once; a deletion waits for them and they
# for it, so that no key is left without.
_WITH_KEYS = sa.text("SELECT pg_advisory_xact_lock_shared(hashtext('auth.tenants'))")
_ALONE = sa.text("SELECT pg_advisory_xact_lock(hashtext('auth.tenants'))")

_KEYS_OF_TENANT = sa.text(
    "SELECT 1 FROM auth.api_keys WHERE tenant = :tenant AND revoke_time IS NULL LIMIT 1"
)
_KEYS_OF_PROJECT = sa.text(
    "SELECT 1 FROM auth.api_keys"
    " WHERE tenant = :tenant AND project = :project AND revoke_time IS NULL LIMIT 1"
)
_ADOPT = sa.text(
    "SELECT DISTINCT tenant, project FROM auth.api_keys"
    " WHERE revoke_time IS NULL ORDER BY tenant, project"
)


class Tenant(NamedTuple):
    """A tenant. The time is aware, in UTC."""

    tenant: str
    display_name: str
    create_time: datetime


class Project(NamedTuple):
    """A project. The time is aware, in UTC."""

    tenant: str
    project: str
    display_name: str
    create_time: datetime


async def ensure_project(connection: AsyncConnection, tenant: str, project: str) -> None:
    """Makes a key's tenant and project where they do not exist, in the transaction of the key."""
    await connection.execute(_WITH_KEYS)
    now = datetime.now(UTC)
    made = insert(_tenants).values(tenant=tenant, display_name="", create_time=now)
    await connection.execute(made.on_conflict_do_nothing())
    for name in dict.fromkeys((DEFAULT, project)):
        row = {"tenant": tenant, "project": name, "display_name": "", "create_time": now}
        await connection.execute(insert(_projects).values(row).on_conflict_do_nothing())


class PostgresTenants:
    """Makes, lists, changes and deletes tenants and projects.

    Every method raises `MeshError` `STORE_UNAVAILABLE` when it cannot reach PostgreSQL.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def adopt(self) -> None:
        """Makes the default tenant, and those of keys that are older than tenants are."""
        async with transaction(self._engine) as connection:
            found = (await connection.execute(_ADOPT)).all()
            await ensure_project(connection, DEFAULT, DEFAULT)
            for tenant, project in found:
                await ensure_project(connection, tenant, project)

    async def add_tenant(self, tenant: Tenant) -> None:
        """Adds a tenant with its project `default`.

        Raises:
            MeshError: `FAILED_PRECONDITION` where it exists.
        """
        async with transaction(self._engine) as connection:
            statement = insert(_tenants).values(tenant._asdict()).on_conflict_do_nothing()
            made = await connection.execute(statement.returning(_tenants.c.tenant))
            if made.first() is None:
                raise errors.precondition(f"There is a tenant `{tenant.tenant}` already.")
            await ensure_project(connection, tenant.tenant, DEFAULT)

    async def tenant(self, name: str) -> Tenant:
        """Returns a tenant.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        async with transaction(self._engine) as connection:
            return await _tenant(connection, name)

    async def tenants(self, size: int, after: str) -> Sequence[Tenant]:
        """Returns the next tenants by name."""
        query = sa.select(_tenants).where(_tenants.c.tenant > after)
        async with transaction(self._engine) as connection:
            rows = await connection.execute(query.order_by(_tenants.c.tenant).limit(size))
            return [Tenant(*row) for row in rows]

    async def rename_tenant(self, name: str, display_name: str) -> Tenant:
        """Changes a tenant's display name.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        changed = sa.update(_tenants).where(_tenants.c.tenant == name)
        changed = changed.values(display_name=display_name)
        async with transaction(self._engine) as connection:
            await connection.execute(changed)
            return await _tenant(connection, name)

    async def delete_tenant(self, name: str) -> None:
        """Deletes a tenant and its projects.

        Raises:
            MeshError: `NOT_FOUND`; `FAILED_PRECONDITION` for the default one, and while a key of
                it is not revoked.
        """
        if name == DEFAULT:
            raise errors.precondition("The tenant `default` stays.")
        async with transaction(self._engine) as connection:
            await connection.execute(_ALONE)
            await _tenant(connection, name)
            if (await connection.execute(_KEYS_OF_TENANT, {"tenant": name})).first():
                raise errors.precondition(f"The tenant `{name}` has keys. Revoke them first.")
            await connection.execute(sa.delete(_projects).where(_projects.c.tenant == name))
            await connection.execute(sa.delete(_tenants).where(_tenants.c.tenant == name))

    async def add_project(self, project: Project) -> None:
        """Adds a project.

        Raises:
            MeshError: `NOT_FOUND` without its tenant; `FAILED_PRECONDITION` where it exists.
        """
        async with transaction(self._engine) as connection:
            await connection.execute(_WITH_KEYS)
            await _tenant(connection, project.tenant)
            statement = insert(_projects).values(project._asdict()).on_conflict_do_nothing()
            made = await connection.execute(statement.returning(_projects.c.project))
            if made.first() is None:
                raise errors.precondition(
                    f"The tenant `{project.tenant}` has a project `{project.project}` already."
                )

    async def project(self, tenant: str, name: str) -> Project:
        """Returns a project.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        async with transaction(self._engine) as connection:
            return await _project(connection, tenant, name)

    async def projects(self, tenant: str, size: int, after: str) -> Sequence[Project]:
        """Returns the next projects of a tenant by name.

        Raises:
            MeshError: `NOT_FOUND` without the tenant.
        """
        query = sa.select(_projects).where(
            _projects.c.tenant == tenant, _projects.c.project > after
        )
        async with transaction(self._engine) as connection:
            await _tenant(connection, tenant)
            rows = await connection.execute(query.order_by(_projects.c.project).limit(size))
            return [Project(*row) for row in rows]

    async def rename_project(self, tenant: str, name: str, display_name: str) -> Project:
        """Changes a project's display name.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        changed = sa.update(_projects).where(_is(tenant, name)).values(display_name=display_name)
        async with transaction(self._engine) as connection:
            await connection.execute(changed)
            return await _project(connection, tenant, name)

    async def delete_project(self, tenant: str, name: str) -> None:
        """Deletes a project.

        Raises:
            MeshError: `NOT_FOUND`; `FAILED_PRECONDITION` for the default one, and while a key of
                it is not revoked.
        """
        if name == DEFAULT:
            raise errors.precondition("The project `default` stays as long as its tenant.")
        async with transaction(self._engine) as connection:
            await connection.execute(_ALONE)
            await _project(connection, tenant, name)
            of_project = {"tenant": tenant, "project": name}
            if (await connection.execute(_KEYS_OF_PROJECT, of_project)).first():
                raise errors.precondition(f"The project `{name}` has keys. Revoke them first.")
            await connection.execute(sa.delete(_projects).where(_is(tenant, name)))


async def _tenant(connection: AsyncConnection, name: str) -> Tenant:
    query = sa.select(_tenants).where(_tenants.c.tenant == name)
    row = (await connection.execute(query)).first()
    if row is None:
        raise errors.tenant_not_found(name)
    return Tenant(*row)


async def _project(connection: AsyncConnection, tenant: str, name: str) -> Project:
    row = (await connection.execute(sa.select(_projects).where(_is(tenant, name)))).first()
    if row is None:
        raise errors.project_not_found(tenant, name)
    return Project(*row)


def _is(tenant: str, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(_projects.c.tenant == tenant, _projects.c.project == name)
