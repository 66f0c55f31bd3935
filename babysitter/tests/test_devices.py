"""What the devices' tools print, and whether an engine that has ended still holds memory."""

import pytest

from infinilm_babysitter.devices import (
    Account,
    Device,
    Reading,
    held,
    parse_mx,
    parse_npu,
    parse_nvidia,
    used_by_engine,
)

NVIDIA_APPS = "1234\n 5678\n[Not Found]\n"
NVIDIA_GPUS = "0, GPU-1a2b3c4d-0000, 40123\n1, GPU-9f8e7d6c-0000, 3\n2, GPU-77, [N/A]\n"
MX = """\
mx-smi  version: 2.2.4

=================== MetaX System Management Interface Log ===================
Timestamp                                         : Tue Jul 29 12:16:08 2025

Attached GPUs                                     : 2
+---------------------------------------------------------------------------------+
| MX-SMI 2.2.4                        Kernel Mode Driver Version: 2.15.9          |
| MACA Version: 2.32.0.6              BIOS Version: 1.25.1.0                      |
|------------------------------------+---------------------+----------------------+
| GPU         NAME                   | Bus-id              | GPU-Util             |
| Temp        Pwr:Usage/Cap          | Memory-Usage        | GPU-State            |
|====================================+=====================+======================|
| 0           MetaX C550             | 0000:0f:00.0        | 0%                   |
| 29C         53W / 450W             | 60982/65536 MiB     | Available            |
+------------------------------------+---------------------+----------------------+
| 1           MetaX C550             | 0000:34:00.0        | 0%                   |
| 31C         55W / 450W             | 858/65536 MiB       | Available            |
+------------------------------------+---------------------+----------------------+

+---------------------------------------------------------------------------------+
| Process:                                                                        |
|  GPU                    PID         Process Name                 GPU Memory     |
|                                                                  Usage(MiB)     |
|=================================================================================|
|  0                    15652         python                       60032          |
|  0                    22854         ray::RayWorkerW              92             |
+---------------------------------------------------------------------------------+
"""
MX_IDLE = """\
+---------------------------------------------------------------------------------+
| Process:                                                                        |
|  GPU                    PID         Process Name                 GPU Memory     |
|                                                                  Usage(MiB)     |
|=================================================================================|
|  no process found                                                               |
+---------------------------------------------------------------------------------+
"""
NPU = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.5.0                   Version: 25.5.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 4     Ascend910           | OK            | 243.3       53                0    / 0             |
| 0     8                   | 0000:85:00.0  | 17          0    / 0          50719/ 65536         |
+------------------------------------------------------------------------------------------------+
| 4     Ascend910           | OK            | -           50                0    / 0             |
| 1     9                   | 0000:87:00.0  | 0           0    / 0          2895 / 65536         |
+===========================+===============+====================================================+
| 6     910B3               | OK            | 91.0        36                0    / 0             |
| 0                         | 0000:41:00.0  | 0           0    / 0          3401 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 4       0                 | 3325989       |                          | 50128                   |
| 4       1                 | 3328327       | python                   | 132                     |
+===========================+===============+====================================================+
| No running processes found in NPU 6                                                            |
+===========================+===============+====================================================+
"""


def test_nvidia_smi() -> None:
    reading = parse_nvidia([NVIDIA_APPS, NVIDIA_GPUS])
    assert reading == Reading(
        frozenset({1234, 5678}),
        (
            Device(("0", "GPU-1a2b3c4d-0000"), 40123),
            Device(("1", "GPU-9f8e7d6c-0000"), 3),
        ),
    )


def test_mx_smi_and_ht_smi() -> None:
    reading = parse_mx([MX])
    assert reading.pids == {15652, 22854}
    assert reading.devices == (Device(("0",), 60982), Device(("1",), 858))
    assert parse_mx([MX_IDLE]) == Reading(frozenset(), ())


def test_npu_smi_counts_chips_as_engines_do() -> None:
    reading = parse_npu([NPU])
    assert reading.pids == {3325989, 3328327}
    assert reading.devices == (
        Device(("0",), 50719),
        Device(("1",), 2895),
        Device(("2",), 3401),
    )


@pytest.mark.parametrize("text", ["", "No devices were found\n", "|||\n| 1 |\nProcess:", "\0"])
def test_other_output_says_nothing(text: str) -> None:
    nothing = Reading(frozenset(), ())
    assert [parse_nvidia([text, text]), parse_mx([text]), parse_npu([text])] == [nothing] * 3


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, {"0", "1"}),
        ("0", {"0"}),
        ("1, 0", {"0", "1"}),
        ("GPU-9f8e", {"1"}),
        ("", set()),
        ("-1", set()),
        ("7", set()),
        ("MIG-4d2f-1-0", set()),
    ],
)
def test_an_engine_uses_the_devices_of_its_variable(text: str | None, names: set[str]) -> None:
    devices = parse_nvidia([NVIDIA_APPS, NVIDIA_GPUS]).devices
    env = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
    assert set(used_by_engine(devices, ("CUDA_VISIBLE_DEVICES",), env)) == names


def look(account: Account, *pids: int, **used: float) -> str:
    return held(account, Reading(frozenset(pids), ()), gone={10, 11}, used=used)


def test_memory_of_a_process_of_ours_is_held_and_that_of_others_is_not_our_business() -> None:
    assert "pids 10, 11" in look(Account(), 10, 11, 99)
    assert look(Account(lists_ours=True, before={"a": 0}), 99, a=60000) == ""


def test_where_no_process_of_ours_is_ever_listed_memory_must_be_as_before() -> None:
    account = Account(before={"a": 1000, "b": 0}, uses_memory=True)
    assert "devices b" in look(account, a=1200, b=513)
    assert look(account, a=1512, b=512) == ""
    assert look(account, c=60000) == "", "a device that was not there before says nothing"


def test_an_engine_that_used_no_device_memory_is_not_waited_for() -> None:
    assert look(Account(before={"a": 0}, uses_memory=False), a=60000) == ""


def test_before_the_first_engine_there_is_nothing_to_wait_for() -> None:
    assert look(Account(), 99, a=60000) == ""
