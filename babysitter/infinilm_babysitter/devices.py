"""The tools that know which processes hold device memory, and what they print. Pure."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

MARGIN_MIB = 512.0
"""Memory that comes and goes without an engine: of drivers, of displays."""

NVIDIA_PID = re.compile(r"\s*(\d+)\s*")
NVIDIA_DEVICE = re.compile(r"\s*(\d+)\s*,\s*(\S+)\s*,\s*(\d+)\s*")
MX_DEVICE = re.compile(r"\|\s*(\d+)\s.*\|\s*[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:\S+\s*\|")
MX_MEMORY = re.compile(r"\|.*\|\s*(\d+)\s*/\s*\d+\s*MiB")
MX_PROCESS = re.compile(r"\|\s*\d+\s+(\d+)\s+\S")
NPU_MEMORY = re.compile(
    r"\|[\d\s]+\|\s*[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:\S+\s*\|.*?(\d+)\s*/\s*\d+\s*\|$"
)
NPU_PROCESS = re.compile(r"\|\s*\d+(?:\s+\d+)?\s*\|\s*(\d+)\s*\|")


@dataclass(frozen=True, slots=True)
class Device:
    """One device: how it may be called, and the memory in use on it by anybody."""

    names: tuple[str, ...]
    used_mib: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What a tool said."""

    pids: frozenset[int]
    """Processes that hold memory. A tool in a container may name none, or those of the host."""
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """A program, the arguments of each call, how to read what they print together."""

    program: str
    calls: tuple[tuple[str, ...], ...]
    parse: Callable[[Sequence[str]], Reading]
    variables: tuple[str, ...]
    """The first of these that is set says which devices an engine uses."""


@dataclass(slots=True)
class Account:
    """What is known of our engine's memory, by one tool."""

    lists_ours: bool = False
    """It has named a process of ours: then its list is all that counts."""
    before: Mapping[str, float] = field(default_factory=dict)
    """Memory in use on each of the engine's devices before the engine was started."""
    uses_memory: bool | None = None
    """Whether more was in use while it ran; None: nobody looked."""


def parse_nvidia(outputs: Sequence[str]) -> Reading:
    """`--query-compute-apps=pid` and `--query-gpu=index,uuid,memory.used` as bare CSV."""
    apps, devices = outputs
    pids = (NVIDIA_PID.fullmatch(line) for line in apps.splitlines())
    found = (NVIDIA_DEVICE.fullmatch(line) for line in devices.splitlines())
    return Reading(
        frozenset(int(match[1]) for match in pids if match),
        tuple(Device((match[1], match[2]), float(match[3])) for match in found if match),
    )


def parse_mx(outputs: Sequence[str]) -> Reading:
    """The overview of mx-smi and ht-smi: two lines for each device, then the processes."""
    overview, _, processes = outputs[0].partition("Process:")
    devices: list[Device] = []
    index: str | None = None
    for line in overview.splitlines():
        if match := MX_DEVICE.match(line):
            index = match[1]
        elif index is not None and (match := MX_MEMORY.match(line)):
            devices.append(Device((index,), float(match[1])))
            index = None
    pids = (MX_PROCESS.match(line) for line in processes.splitlines())
    return Reading(frozenset(int(match[1]) for match in pids if match), tuple(devices))


def parse_npu(outputs: Sequence[str]) -> Reading:
    """`npu-smi info`: two lines for each chip, counted as engines count them; then processes."""
    overview, _, processes = outputs[0].partition("Process id")
    used = [match[1] for line in overview.splitlines() if (match := NPU_MEMORY.match(line.strip()))]
    pids = (NPU_PROCESS.match(line.strip()) for line in processes.splitlines())
    return Reading(
        frozenset(int(match[1]) for match in pids if match),
        tuple(Device((str(index),), float(mib)) for index, mib in enumerate(used)),
    )


TOOLS = (
    Tool(
        "nvidia-smi",
        (
            ("--query-compute-apps=pid", "--format=csv,noheader"),
            ("--query-gpu=index,uuid,memory.used", "--format=csv,noheader,nounits"),
        ),
        parse_nvidia,
        ("CUDA_VISIBLE_DEVICES",),
    ),
    Tool("mx-smi", ((),), parse_mx, ("MACA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")),
    Tool("ht-smi", ((),), parse_mx, ("HPCC_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")),
    Tool(
        "npu-smi",
        (("info",),),
        parse_npu,
        ("ASCEND_RT_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES"),
    ),
)


def used_by_engine(
    devices: Sequence[Device], variables: Sequence[str], env: Mapping[str, str]
) -> dict[str, float]:
    """Memory in use on the devices that `env` lets an engine use, by their first name."""
    text = next((env[name] for name in variables if name in env), "all")
    wanted = [word.strip() for word in text.split(",")]
    return {
        device.names[0]: device.used_mib
        for device in devices
        if wanted == ["all"] or any(_is_called(device, word) for word in wanted)
    }


def _is_called(device: Device, word: str) -> bool:
    """By its index, or by the beginning of its UUID."""
    return word == device.names[0] or (
        len(word) > 4 and any(name.startswith(word) for name in device.names)
    )


def held(
    account: Account, reading: Reading, *, gone: Collection[int], used: Mapping[str, float]
) -> str:
    """What is still held by an engine that has ended, in words; empty if nothing is.

    Args:
        account: what is known from before.
        reading: what the tool says now.
        gone: processes of the engine; none of them runs any more.
        used: memory on the engine's devices now.
    """
    if ours := sorted(reading.pids.intersection(gone)):
        return f"memory of ended processes is held: pids {', '.join(map(str, ours))}"
    if account.lists_ours or account.uses_memory is False:
        return ""
    more = {name: used[name] - account.before[name] for name in used.keys() & account.before.keys()}
    full = sorted(name for name in more if more[name] > MARGIN_MIB)
    return (
        f"more memory is in use than before the engine: devices {', '.join(full)}" if full else ""
    )
