"""`infermesh tenants`: whom keys act for."""

from typing import Annotated

import typer

from services.cli.options import DEFAULT_ADDRESS, Address, Key

app = typer.Typer(help="Create, rename, list and delete tenants.", no_args_is_help=True)

_Tenant = Annotated[str, typer.Argument(help="The tenant's name: a-z, 0-9, - and _.")]
_Name = Annotated[str, typer.Option(help="A name for people.")]


@app.command()
def create(
    tenant: _Tenant, name: _Name = "", address: Address = DEFAULT_ADDRESS, key: Key = None
) -> None:
    """Create a tenant with its project `default`."""
    from infermesh.auth.v1 import tenant_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    request = pb.CreateTenantRequest(tenant=tenant, display_name=name)
    with connect(address, key) as mesh:
        mesh.tenants.CreateTenant(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"The tenant {tenant} is there.")


@app.command("list")
def list_tenants(address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """List the tenants by name."""
    from infermesh.auth.v1 import tenant_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.tables import show

    found: list[pb.Tenant] = []
    request = pb.ListTenantsRequest(page_size=1000)
    with connect(address, key) as mesh:
        while True:
            page = mesh.tenants.ListTenants(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
            found.extend(page.tenants)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    rows = [
        (each.tenant, each.display_name, f"{each.create_time.ToDatetime():%Y-%m-%d %H:%M}")
        for each in found
    ]
    show("Tenants", ("tenant", "name", "created (UTC)"), rows)


@app.command()
def rename(
    tenant: _Tenant,
    name: Annotated[str, typer.Argument(help="The new name for people.")],
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Change a tenant's name for people."""
    from infermesh.auth.v1 import tenant_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    request = pb.UpdateTenantRequest(tenant=tenant, display_name=name)
    with connect(address, key) as mesh:
        mesh.tenants.UpdateTenant(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"The tenant {tenant} is now called {name}.")


@app.command()
def delete(tenant: _Tenant, address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """Delete a tenant and its projects; its keys must be revoked."""
    from infermesh.auth.v1 import tenant_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    with connect(address, key) as mesh:
        mesh.tenants.DeleteTenant(
            pb.DeleteTenantRequest(tenant=tenant), metadata=mesh.metadata, timeout=TIMEOUT_S
        )
    typer.echo(f"The tenant {tenant} is deleted.")
