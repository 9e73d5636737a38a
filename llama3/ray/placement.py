"""What one replica, a copy of the model, takes from the cluster: GPUs, or cores. And how many replicas there are."""

from typing import Any, NamedTuple

from llama3.cuda import check_device, numbers_of
from llama3.errors import RequestError
from llama3.ray.cluster import import_ray
from llama3.request import at_least_1


class Placement(NamedTuple):
    """How many replicas there are, and what each of them takes."""

    replicas: int
    device: str  # for Llama.load; Ray numbers a replica's own GPUs from 0
    num_gpus: int
    num_cpus: float  # Ray makes it the number of BLAS threads; 0 with a GPU

    @property
    def options(self) -> dict[str, Any]:
        """The options of Ray's actors."""
        return {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus}


def place(device: str, replicas: int | None = None, at_most: int | None = None) -> Placement:
    """Share out the cluster that this program is connected to.

    device: as for `Llama.load`. "auto" is "cuda" if the cluster has a GPU. The numbers of GPUs do not matter, only how
    many they are: each replica gets its own. On CPUs, the cores of a machine are shared out among the replicas that it
    may have.
    replicas: by default, one for each GPU (or each group of GPUs), or one for each machine, but at most `at_most`.
    at_most: how many there may be later, if their number can grow.

    Raises RequestError for replicas below 1, and if the cluster has no GPU, or too few.
    """
    kind, numbers = numbers_of(check_device(device))
    replicas = None if replicas is None else at_least_1("replicas", replicas)
    machines = [node["Resources"] for node in import_ray().nodes() if node["Alive"]]
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    if kind == "auto":
        kind = "cuda" if any(gpus) else "cpu"
        device = "auto" if kind == "cuda" else "cpu"
    if kind == "cuda":
        each = len(numbers)
        room, wanted = sum(n // each for n in gpus), replicas or 1
        if not any(gpus):
            raise RequestError(f"device {device}: no machine of the Ray cluster has a GPU; expected the device cpu")
        if wanted > room:
            raise RequestError(
                f"{wanted} replica{'s' * (wanted > 1)} with {each} GPU{'s' * (each > 1)} each: the Ray cluster has "
                f"GPUs for {room}"
            )
        own = device if device == "auto" else "cuda" if each == 1 else f"cuda:0-{each - 1}"
        return Placement(replicas or min(room, at_most or room), own, each, 0)
    cores = [machine.get("CPU", 0) for machine in machines if machine.get("CPU", 0) > 0]
    if not cores:
        raise RequestError("no machine of the cluster has a CPU to give; expected `ray start` with --num-cpus")
    replicas = replicas or min(len(cores), at_most or len(cores))
    share = min(cores) / -(-max(replicas, at_most or 0) // len(cores))
    return Placement(replicas, device, 0, int(share) if share >= 1 else share)
