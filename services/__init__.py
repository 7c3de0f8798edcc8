"""The services of the mesh, the kit that they share, and the command line."""

import os

# With gRPC's older listener the thread that waits for a call is the one that reads its socket,
# which saves a wake-up per message: 10 to 15 % of a server's CPU. gRPC reads this when imported.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
