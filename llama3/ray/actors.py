"""One replica: a process somewhere in the cluster that holds the model and answers requests, many at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama3.batch import IN_FLIGHT
from llama3.batch_request import Answerer, Line
from llama3.errors import Llama3Error, RequestError
from llama3.llama import Llama
from llama3.ray.cluster import import_ray
from llama3.ray.placement import Placement


class BatchReplica:
    """What runs in that process. `load` comes first; then `answer_line` is called from many threads."""

    answerer: Answerer

    def load(self, load: Callable[[], Llama]) -> tuple[Path, str]:
        """Load the model -> (its folder, its device). Raises Llama3Error, which says on which machine it was."""
        try:
            llama = load()
            if llama.tokenizer is None:
                raise RequestError(f"{llama.checkpoint.path} has no tokenizer, so it cannot read text")
        except Llama3Error as error:
            raise Llama3Error(f"{error} (on {import_ray().util.get_node_ip_address()})") from None
        self.answerer = Answerer(llama)
        return llama.checkpoint.path, llama.device

    def answer_line(self, text: bytes) -> Line:
        return self.answerer.answer_line(text)


def start(placement: Placement, slots: int) -> Any:
    """The handle of a new actor. Ray starts it where there is room, and spreads actors over the machines.

    An actor runs as many calls at once as requests are in flight for it. Ray repeats no call and restarts no actor:
    dispatch.py does both, because it knows which requests have an answer.
    """
    options = {"max_concurrency": IN_FLIGHT * slots, "scheduling_strategy": "SPREAD"}
    return import_ray().remote(BatchReplica).options(**options, **placement.options).remote()
