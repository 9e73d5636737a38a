"""Machine code for one architecture that CuPy cannot name, compiled by NVRTC into a file that CuPy can load.

CuPy compiles for the GPU's plain architecture, sm_90 on Hopper. Hopper's matrix instructions (wgmma) exist only in code
for sm_90a, which runs on Hopper and nowhere else.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from llama3.cuda.launch import Kernel
from llama3.cuda.source import kernel_source


def cubin_file(kernel: Kernel) -> Path:
    """The file with a kernel's machine code for `kernel.architecture`, in CuPy's cache folder.

    It is compiled unless there is one of the same text, options and version of NVRTC. Raises CuPy's CompileException.
    """
    from cupy._core.core import assemble_cupy_compiler_options
    from cupy.cuda.compiler import _NVRTCProgram
    from cupy_backends.cuda.libs import nvrtc

    source = kernel_source(kernel.file)
    options = (*assemble_cupy_compiler_options(kernel.options), f"-arch={kernel.architecture}", "-ftz=true")
    key = hashlib.sha256("\0".join([source, *options, str(nvrtc.getVersion())]).encode()).hexdigest()
    folder = Path(os.environ.get("CUPY_CACHE_DIR", Path.home() / ".cupy" / "kernel_cache"))  # as CuPy chooses it
    file = folder / f"{Path(kernel.file).stem}-{kernel.architecture}-{key[:24]}.cubin"
    if not file.exists():
        cubin, _ = _NVRTCProgram(source, kernel.file, method="cubin").compile(options)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as new:
            new.write(cubin + b"\0")  # CuPy cuts off the last byte, which is 0; the file would not be valid without it
        os.replace(new.name, file)  # another process may do the same
    return file
