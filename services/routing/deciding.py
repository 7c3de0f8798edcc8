"""Decides about calls for every protocol in which routing is asked."""

import asyncio
import logging

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError
from services.routing.facts import Facts
from services.routing.router import Outcome, Router
from services.routing.view import MeshView

log = logging.getLogger(__name__)


class Decider:
    """Says where calls go.

    Args:
        view: The mesh.
        router: Decides.

    Attributes:
        router: Decides.
    """

    def __init__(self, view: MeshView, router: Router) -> None:
        self._view = view
        self.router = router

    def decide(self, facts: Facts) -> Outcome | MeshError | None:
        """Returns where a call goes, why it is refused, or None where there is nothing to decide.

        Without a model there is nothing to choose by, and before the first view nothing to choose
        from.
        """
        if not facts.model or not self._view.synced:
            return None
        try:
            return self.router.route(facts)
        except MeshError as error:
            return error
        except Exception:
            log.exception("a decision failed")
            return MeshError(errors_pb2.ERROR_REASON_INTERNAL, "The mesh failed to route the call.")

    def settle_soon(self) -> None:
        """Has what the decision left to do be done once its answer is on its way."""
        asyncio.get_running_loop().call_soon(self.router.settle)
