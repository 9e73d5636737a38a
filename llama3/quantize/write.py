"""Writes a quantised checkpoint: shard after shard, then the small files. An interrupted run can be continued."""

import shutil
from collections.abc import Callable
from pathlib import Path

from llama3.checkpoint.chat_template import TEMPLATE
from llama3.checkpoint.folder import TOKENIZERS
from llama3.checkpoint.json_file import read_json_file
from llama3.checkpoint.shards import INDEX
from llama3.errors import CheckpointError, RequestError
from llama3.quantize.packing import BITS, group_width, quantization_config
from llama3.quantize.plan import index, plan
from llama3.quantize.shard_file import write_shard
from llama3.quantize.source import open_source
from llama3.quantize.target import (
    check_space,
    complete,
    explain_errors,
    is_complete,
    only_run,
    open_partial,
    write_json,
)

COPIED = ("*.json", TEMPLATE, *TOKENIZERS, "LICENSE*", "USE_POLICY*", "NOTICE*")


def quantize(
    source: str | Path, to: str | Path, bits: int = 8, on_progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write the checkpoint in the folder `source` with 8 or 4 bits a weight to the folder `to`. Returns `to`.

    The matrices of the layers are rounded: with 8 bits, a scale for each row; with 4 bits, one for 128 columns of a row
    (64 or 32 if 128 does not divide every row; the whole row if none does). Embedding, output and norms are copied.

    `to` does not exist until it is complete: until then the files are in `to` + ".partial", and the same call continues
    an interrupted one. on_progress: called with the bytes of the source that are done, and with the bytes of all of it.
    Raises RequestError for `bits`, and CheckpointError for the folders and for weights that are not finite.
    """
    if bits not in BITS:
        raise RequestError(f"bits is {bits!r}; expected 8 or 4")
    source, to = Path(source), Path(to).absolute()
    if to.resolve() == source.resolve():
        raise CheckpointError(f"{to}: source and target are the same folder; name another target")
    checkpoint, tensors = open_source(source)
    width = group_width(checkpoint.config, bits)
    shards = plan(tensors.values(), bits, width)
    files = [file.stat() for file in (*checkpoint.files, source / "config.json")]
    made_of = {"source": str(source.resolve()), "bits": bits, "files": [[f.st_size, f.st_mtime_ns] for f in files]}
    total, done = sum(tensor.nbytes for tensor in tensors.values()), 0

    def report(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if on_progress:
            on_progress(done, total)

    with explain_errors(to), only_run(to):
        if is_complete(to, made_of):
            return to
        folder = open_partial(to, made_of)
        check_space(folder, shards)
        for shard in shards:
            if (folder / shard.name).exists():
                report(sum(tensor.nbytes for tensor in shard.sources))
            else:
                write_shard(folder / shard.name, shard, bits, width, report)
        if len(shards) > 1:
            write_json(folder / f"model{INDEX}", index(shards))
        _copy_small_files(source, folder)
        config = read_json_file(source / "config.json")
        write_json(folder / "config.json", config | {"quantization_config": quantization_config(bits, width)})
        complete(folder, to)
    return to


def _copy_small_files(source: Path, folder: Path) -> None:
    """The tokenizer, the chat template, generation_config.json and the licence."""
    for pattern in COPIED:
        for file in source.glob(pattern):
            if not file.name.endswith(INDEX) and file.is_file():
                target = folder / file.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
