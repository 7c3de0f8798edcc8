"""How the way to the engine fails, below HTTP.

EngineConnectionError
  EngineConnectError
EngineTimeoutError
  EngineOvertimeError
"""


class EngineConnectionError(Exception):
    """The connection to the engine could not be made, or broke before the answer was complete."""


class EngineConnectError(EngineConnectionError):
    """The engine does not take connections."""


class EngineTimeoutError(Exception):
    """The engine sent nothing for longer than the idle timeout."""


class EngineOvertimeError(EngineTimeoutError):
    """The engine was not done with an answer within the time that one may take."""
