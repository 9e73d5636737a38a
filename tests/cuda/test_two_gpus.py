"""A device uses only what belongs to its own GPU, and its host memory is not reused before the GPU has copied it."""

import sys

import numpy as np
import pytest

from llama3.cuda import device as device_module
from llama3.cuda.device import CupyDevice, bfloat16
from llama3.cuda.launch import Kernel
from tests.cuda.two_gpus import Gpus, Refused

ADD = Kernel("rope.cu", "add", max_shared=85_000)


def add(array, amount):
    array += amount


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.setattr(device_module, "SMALL", 64)  # bytes
    monkeypatch.setattr(device_module, "PIECE", 1024)
    simulated = Gpus()
    simulated.kernels["add"] = add
    for name, module in simulated.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(device_module, "load_library", simulated.cublas)
    return simulated


def use_everything(device):
    """Every operation of a device, with a check of the results."""
    small, large = np.arange(7, dtype=np.int32), np.arange(2000, dtype=np.int32)
    x, y = device.upload(small), device.upload(large)
    device.launch(ADD, (1,), (1,), [x, np.int32(10)], shared=85_000)
    with device.capture() as graph:
        device.launch(ADD, (1,), (1,), [x, np.int32(1)], shared=85_000)
    for _ in range(3):
        device.replay(graph)
    copy = device.host_copy(x)
    copy.start(5)
    assert copy.wait().tolist() == (small + 13)[:5].tolist()
    device.copy(x, into=y[:7])
    device.upload(large[:3], into=y[7:10])
    expected = np.concatenate([small + 13, large[:3], large[10:]])
    assert device.download(y).tolist() == expected.tolist()
    matrices = [device.alloc(shape, bfloat16) for shape in ((2, 64), (3, 64), (2, 3))]
    device.gemm(*matrices)
    device.sync()
    free, total = device.memory()
    assert 0 < free < total
    return x, graph


@pytest.mark.parametrize("index", [0, 1])
def test_every_operation_works_on_either_gpu(gpus, index):
    use_everything(CupyDevice(index))
    assert gpus.devices == [0] and gpus.streams == []  # as before


def test_two_devices_work_in_turn(gpus):
    devices = CupyDevice(0), CupyDevice(1)
    for _ in range(2):
        for device in devices:
            use_everything(device)


def test_the_simulation_refuses_what_belongs_to_the_other_gpu(gpus):
    first, second = CupyDevice(0), CupyDevice(1)
    x, graph = use_everything(first)
    copy = second.host_copy(second.upload(np.zeros(3)))
    function = first._functions[ADD]
    for misuse in (
        lambda: second.launch(ADD, (1,), (1,), [x, np.int32(1)]),
        lambda: second.upload(np.arange(7, dtype=np.int32), into=x),
        lambda: second.download(x),
        lambda: second.host_copy(x).start(1),
        lambda: second.copy(x, into=second.alloc((7,), np.int32)),
        lambda: second.replay(graph),
        lambda: copy._done.record(second._stream),
        lambda: second._stream.synchronize(),
    ):
        with pytest.raises(Refused, match="of GPU"):
            misuse()
    with second._current(), pytest.raises(Refused, match="85000 bytes of shared memory; the limit is 49152"):
        function((1,), (1,), (), shared_mem=85_000)  # on the first GPU the limit was raised
    with pytest.raises(Refused, match="a module is loaded inside a capture"), second.capture():
        second.launch(Kernel("rope.cu", "another"), (1,), (1,), [])


def test_a_launch_that_overlaps_gets_the_handles_of_its_own_gpu(gpus, monkeypatch):
    calls = []
    monkeypatch.setattr(device_module, "launch_dependent", lambda *call: calls.append((gpus.current, *call)))
    device = CupyDevice(1)
    device._driver = "driver"
    x = device.upload(np.zeros(3, np.int32))
    device.launch(ADD, (1,), (1,), [x, np.int32(1)], dependent=True)
    with device.capture():
        device.launch(ADD, (1,), (1,), [x, np.int32(1)], dependent=True)
    assert [call[:-1] for call in calls] == [(1, "driver", 1001, 2001)]


# ---- pinned memory ----


def queued(device):
    return len(device._stream.queue)


def test_a_small_upload_waits_for_the_one_that_used_its_slot_and_for_no_other(gpus):
    device = CupyDevice()
    arrays = [device.alloc((16,), np.int32) for _ in range(40)]
    values = [np.full(16, i, np.int32) for i in range(40)]
    for array, value in zip(arrays[:32], values):
        device.upload(value, into=array)
    assert queued(device) == 64  # copies and their events: nothing has been waited for
    device.upload(values[32], into=arrays[32])
    assert queued(device) == 64  # the first copy and its event are done
    for array, value in zip(arrays[33:], values[33:]):
        device.upload(value, into=array)
    assert [device.download(array).tolist() for array in arrays] == [value.tolist() for value in values]


def test_a_large_upload_goes_through_two_pieces_in_turn_and_leaves_the_small_ones_alone(gpus):
    device, large = CupyDevice(), np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
    small = device.upload(np.arange(3, dtype=np.int32))
    found = device.upload(large)
    again = device.upload(large[::-1])
    assert queued(device) == 2 * 2  # of five pieces, the last two have not been waited for
    assert device.download(found).tobytes() == large.tobytes()
    assert device.download(again).tobytes() == large[::-1].tobytes()
    assert device.download(small).tolist() == [0, 1, 2]


def test_the_host_may_change_an_array_after_its_upload(gpus):
    device, array = CupyDevice(), np.arange(8, dtype=np.int32)
    found = device.upload(array)
    array[:] = -1
    assert device.download(found).tolist() == list(range(8))


def test_a_host_copy_holds_what_the_array_held_when_it_was_started(gpus):
    """Work that is queued later neither changes it nor is waited for."""
    device = CupyDevice()
    x = device.upload(np.arange(6, dtype=np.int32).reshape(3, 2))
    copies = [device.host_copy(x) for _ in range(2)]
    for copy in copies:
        copy.start(2)
        device.launch(ADD, (1,), (1,), [x, np.int32(100)])
    assert copies[0].wait().tolist() == [[0, 1], [2, 3]]
    assert queued(device) > 0
    assert copies[1].wait().tolist() == [[100, 101], [102, 103]]
    assert queued(device) == 1  # the last launch
    copies[0].start(3)
    assert copies[0].wait().tolist() == [[200, 201], [202, 203], [204, 205]]


# ---- captures ----


def test_a_capture_that_cannot_be_ended_leaves_the_device_usable(gpus):
    device = CupyDevice(1)
    x = device.upload(np.zeros(2, np.int32))
    device.launch(ADD, (1,), (1,), [x, np.int32(1)])
    gpus.fail_at_end_of_capture = True
    with pytest.raises(RuntimeError, match="Invalidated"), device.capture():
        device.launch(ADD, (1,), (1,), [x, np.int32(1)])
    gpus.fail_at_end_of_capture = False
    assert device.capturing is None
    use_everything(device)
    assert device.download(x).tolist() == [1, 1]


def test_a_capture_that_cannot_begin_leaves_the_device_usable(gpus, monkeypatch):
    device = CupyDevice()

    def fail():
        raise RuntimeError("cudaErrorIllegalState")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="IllegalState"):
        patch.setattr(device._stream, "begin_capture", fail)
        with device.capture():
            pass
    use_everything(device)


def test_an_error_inside_a_capture_is_the_one_that_is_raised(gpus):
    device = CupyDevice()
    with pytest.raises(RuntimeError, match="sync inside a capture"), device.capture():
        device.sync()
    use_everything(device)
