"""What one replica, a copy of the model, takes from the cluster: GPUs, or cores. And how many replicas there are."""

from typing import Any, NamedTuple

from llama3.cuda import check_device, numbers_of
from llama3.errors import RequestError
from llama3.ray.cluster import import_ray


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


def place(device: str, replicas: int | None = None) -> Placement:
    """Share out the cluster that this program is connected to.

    device: as for `Llama.load`. "auto" is "cuda" if the cluster has a GPU. The numbers of GPUs do not matter, only how
    many they are: each replica gets its own. On CPUs, the cores of a machine are shared out among its replicas.
    replicas: by default, one for each GPU (or each group of GPUs), or one for each machine.

    Raises RequestError if the cluster has no GPU, or too few.
    """
    kind, numbers = numbers_of(check_device(device))
    machines = [node["Resources"] for node in import_ray().nodes() if node["Alive"]]
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    if kind == "auto":
        kind = "cuda" if any(gpus) else "cpu"
        device = "auto" if kind == "cuda" else "cpu"
    if kind == "cuda":
        each = len(numbers)
        most, wanted = sum(n // each for n in gpus), replicas or 1
        if not any(gpus):
            raise RequestError(f"device {device}: no machine of the Ray cluster has a GPU; expected the device cpu")
        if wanted > most:
            raise RequestError(
                f"{wanted} replica{'s' * (wanted > 1)} with {each} GPU{'s' * (each > 1)} each: the Ray cluster has "
                f"GPUs for {most}"
            )
        own = device if device == "auto" else "cuda" if each == 1 else f"cuda:0-{each - 1}"
        return Placement(replicas or most, own, each, 0)
    cores = [machine.get("CPU", 0) for machine in machines if machine.get("CPU", 0) > 0]
    if not cores:
        raise RequestError("no machine of the cluster has a CPU to give; expected `ray start` with --num-cpus")
    replicas = replicas or len(cores)
    share = min(cores) / -(-replicas // len(cores))
    return Placement(replicas, device, 0, int(share) if share >= 1 else share)
