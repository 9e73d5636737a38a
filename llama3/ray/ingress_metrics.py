"""Join the metrics of the replicas: each sample gets the label `replica`."""

import re
from collections.abc import Iterable, Mapping

SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")


def joined(found: Iterable[tuple[str, bytes]], counts: Mapping[str, int]) -> str:
    """found: the name of each replica, and its metrics as Prometheus reads them. counts: the ingress's own."""
    # From the two lines that describe a metric to its samples, which must stand together
    families: dict[str, list[str]] = {}
    for replica, text in found:
        comments: list[str] = []
        for line in text.decode().splitlines():
            if line.startswith("#"):
                comments = [line] if line.startswith("# HELP") else [*comments, line]
            elif sample := SAMPLE.fullmatch(line):
                labels = ",".join(filter(None, (f'replica="{replica}"', sample["labels"])))
                samples = families.setdefault("\n".join(comments), [])
                samples.append(f"{sample['name']}{{{labels}}} {sample['value']}")
    name = "llama3_requests_asked_again"
    families[f"# HELP {name} Requests whose replica died, by what became of them\n# TYPE {name} counter"] = [
        f'{name}_total{{kind="{kind}"}} {n}' for kind, n in counts.items()
    ]
    return "".join(f"{comments}\n" + "\n".join(samples) + "\n" for comments, samples in families.items())
