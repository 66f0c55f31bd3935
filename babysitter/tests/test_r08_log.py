"""R8: an engine never waits for its own log."""

import json
import os
from pathlib import Path

import pytest

from infinilm_babysitter.config import LogLimits
from infinilm_babysitter.logpump import LogPump, Ring, RotatedFile
from infinilm_babysitter.tail import LineCap, Tail
from rig.processes import wait_until

MIB = 1 << 20


def flooded(babysat, timeout: float = 60) -> dict:
    return wait_until(lambda: babysat.journal("flooded"), timeout, "end of the flood")[0]


def plan(size: int, text: str = "a line of the engine\n", rate: float = 20e6) -> dict[str, str]:
    return {"flood": json.dumps({"bytes": size, "text": text, "rate": rate})}


def peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def written(babysat, tmp_path: Path) -> int:
    return sum(file.stat().st_size for file in (tmp_path / "logs").glob("*.log*"))


@pytest.mark.parametrize(
    ("size", "longest"), [(20 * MIB, 1.0), pytest.param(200 * MIB, 0.1, marks=pytest.mark.slow)]
)
def test_r08_a_flood_is_read_and_every_byte_is_accounted_for(
    babysit, tmp_path, size: int, longest: float
) -> None:
    limits = {"log_max_bytes": 5 * MIB, "log_files": 100}
    babysat = babysit(switches=plan(size), babysitter=limits)
    babysat.wait_for_state("ready")
    flood = flooded(babysat)
    assert babysat.state() == "ready"
    assert flood["longest"] <= longest
    assert peak_memory(babysat.program.pid) <= 150 * MIB
    lost = babysat.get("/info")[1]["log_lost_bytes"]
    babysat.program.stop()
    hello = len(b"engine says hello\n")
    assert written(babysat, tmp_path) + lost == flood["bytes"] + hello
    assert all(file.stat().st_size <= 5 * MIB for file in (tmp_path / "logs").glob("*.log*"))


def test_r08_old_files_are_removed(babysit, tmp_path) -> None:
    limits = {"log_max_bytes": MIB, "log_files": 2}
    babysat = babysit(switches=plan(8 * MIB), babysitter=limits)
    flooded(babysat)
    babysat.program.stop()
    files = sorted(file.name for file in (tmp_path / "logs").glob("*.log*"))
    assert files == [f"engine_test.log{suffix}" for suffix in ("", ".1", ".2")]


def test_r08_a_line_of_ten_mebibytes_is_cut(babysit, tmp_path) -> None:
    babysat = babysit(switches=plan(10 * MIB, "x"))
    flooded(babysat)
    wait_until(lambda: babysat.get("/info")[1]["log_lost_bytes"] > 9 * MIB)
    babysat.program.stop()
    assert written(babysat, tmp_path) <= 70_000
    babysat.program.wait_for_line(r"engine log incomplete .* lost_bytes=\d{7}")


def test_r08_bytes_that_are_no_text_do_no_harm(babysit, tmp_path) -> None:
    babysat = babysit(switches=plan(MIB, "\xff\xfe\x00\r\n"))
    flooded(babysat)
    babysat.wait_for_state("ready")
    os.kill(babysat.engine_pid(), 9)
    wait_until(lambda: babysat.get("/info")[1]["last_exit"])
    assert "\ufffd" in babysat.get("/info")[1]["last_exit"]["log"][0]


def test_r08_a_full_disk_does_not_stop_the_engine(babysit, tmp_path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/engine_test.log").symlink_to("/dev/full")
    babysat = babysit(switches=plan(4 * MIB))
    flooded(babysat)
    babysat.wait_for_state("ready")
    wait_until(lambda: babysat.get("/info")[1]["log_lost_bytes"] >= 4 * MIB)
    babysat.program.wait_for_line("engine log incomplete .*No space left on device")


def test_a_full_ring_drops_its_oldest_and_counts_them() -> None:
    ring = Ring(limit=10)
    for chunk in (b"aaaa", b"bbbb", b"cccc"):
        ring.put(chunk)
    ring.close()
    assert [ring.take(), ring.take(), ring.take()] == [b"bbbb", b"cccc", None]
    assert ring.dropped == 4


def test_a_pump_whose_disk_hangs_goes_on_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")  # opening it for writing waits for a reader
    pump = LogPump(tmp_path / "log", LogLimits())
    writing = pump.attach()
    for _ in range(100):
        os.write(writing, b"x" * 65535 + b"\n")
    os.close(writing)
    pump.read_rest()
    assert pump.lost_bytes >= 4 * MIB
    with (tmp_path / "log").open("rb") as reader:
        pump.close()
        assert len(reader.read()) + pump.lost_bytes == 100 * 65536


def test_a_rotated_file_keeps_its_order(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "log", LogLimits(max_bytes=4, files=2))
    for data in (b"1111", b"2222", b"3333", b"4444"):
        file.write(data)
    file.close()
    names = ("log", "log.1", "log.2")
    assert [(tmp_path / name).read_bytes() for name in names] == [b"4444", b"3333", b"2222"]
    assert len(list(tmp_path.iterdir())) == 3


def test_no_old_files_are_kept_if_none_are_wanted(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "log", LogLimits(max_bytes=4, files=0))
    for data in (b"1111", b"2222"):
        file.write(data)
    file.close()
    assert [each.name for each in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log").read_bytes() == b"2222"


@pytest.mark.parametrize("step", [1, 3, 7, 100])
def test_the_line_cap_cuts_alike_however_the_bytes_arrive(step: int) -> None:
    data = b"short\n" + b"L" * 30 + b"\n\nexactly10!\n" + b"M" * 11 + b"\nend"
    cap = LineCap(limit=10)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    kept = b"".join(cap.feed(piece) for piece in pieces)
    assert kept == b"short\n" + b"L" * 10 + b"\n\nexactly10!\n" + b"M" * 10 + b"\nend"
    assert cap.cut == 21


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_the_tail_has_the_last_lines_however_the_bytes_arrive(step: int) -> None:
    data = b"".join(f"line {n}\r\n".encode() for n in range(200)) + b"unfinished"
    tail = Tail(lines=3)
    for at in range(0, len(data), step):
        tail.feed(data[at : at + step])
    assert tail.lines() == ("line 197", "line 198", "line 199", "unfinished")
