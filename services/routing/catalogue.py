"""The plugins that policies can name, each once."""

from collections.abc import Callable, Mapping

from services.routing.pickers.best_first import BestFirstPicker
from services.routing.pickers.random import RandomPicker
from services.routing.pickers.round_robin import RoundRobinPicker
from services.routing.plugins import Picker, Scorer
from services.routing.scorers.adapter import AdapterScorer
from services.routing.scorers.cost import CostScorer
from services.routing.scorers.kv_use import KvUseScorer
from services.routing.scorers.prefix import PrefixScorer
from services.routing.scorers.queue import QueueScorer
from services.routing.scorers.session import SessionScorer
from services.routing.scorers.ttft import TtftScorer

SCORERS: Mapping[str, Scorer] = {
    "adapter": AdapterScorer(),
    "cost": CostScorer(),
    "kv_use": KvUseScorer(),
    "prefix": PrefixScorer(),
    "queue": QueueScorer(),
    "session": SessionScorer(),
    "ttft": TtftScorer(),
}

PICKERS: Mapping[str, Callable[[], Picker]] = {
    "best_first": BestFirstPicker,
    "random": RandomPicker,
    "round_robin": RoundRobinPicker,
}
