"""`infermesh projects`: the parts of a tenant that have keys of their own."""

from typing import Annotated

import typer

from services.cli.options import DEFAULT_ADDRESS, Address, Key

app = typer.Typer(help="Create, rename, list and delete a tenant's projects.", no_args_is_help=True)

_Tenant = Annotated[str, typer.Argument(help="The tenant's name: a-z, 0-9, - and _.")]
_Project = Annotated[str, typer.Argument(help="The project's name: a-z, 0-9, - and _.")]
_Name = Annotated[str, typer.Option(help="A name for people.")]


@app.command()
def create(
    tenant: _Tenant,
    project: _Project,
    name: _Name = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Create a project of a tenant."""
    from infermesh.auth.v1 import tenant_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    request = pb.CreateProjectRequest(tenant=tenant, project=project, display_name=name)
    with connect(address, key) as mesh:
        mesh.tenants.CreateProject(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"The project {project} of {tenant} is there.")


@app.command("list")
def list_projects(tenant: _Tenant, address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """List a tenant's projects by name."""
    from infermesh.auth.v1 import tenant_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.tables import show

    found: list[pb.Project] = []
    request = pb.ListProjectsRequest(tenant=tenant, page_size=1000)
    with connect(address, key) as mesh:
        while True:
            page = mesh.tenants.ListProjects(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
            found.extend(page.projects)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    rows = [
        (each.project, each.display_name, f"{each.create_time.ToDatetime():%Y-%m-%d %H:%M}")
        for each in found
    ]
    show(f"Projects of {tenant}", ("project", "name", "created (UTC)"), rows)


@app.command()
def rename(
    tenant: _Tenant,
    project: _Project,
    name: Annotated[str, typer.Argument(help="The new name for people.")],
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Change a project's name for people."""
    from infermesh.auth.v1 import tenant_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    request = pb.UpdateProjectRequest(tenant=tenant, project=project, display_name=name)
    with connect(address, key) as mesh:
        mesh.tenants.UpdateProject(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"The project {project} is now called {name}.")


@app.command()
def delete(
    tenant: _Tenant, project: _Project, address: Address = DEFAULT_ADDRESS, key: Key = None
) -> None:
    """Delete a project; its keys must be revoked."""
    from infermesh.auth.v1 import tenant_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    with connect(address, key) as mesh:
        request = pb.DeleteProjectRequest(tenant=tenant, project=project)
        mesh.tenants.DeleteProject(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"The project {project} of {tenant} is deleted.")
