"""R8: an engine never waits for its own log."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from infinilm_babysitter.config import LogLimits
from infinilm_babysitter.logpump import LogPump, Ring, RotatedFile
from infinilm_babysitter.tail import LineCap, Tail
from rig.processes import wait_until
from rig.traffic import percentile

MIB = 1 << 20


def flooded(babysat, timeout: float = 60) -> dict:
    return wait_until(lambda: babysat.journal("flooded"), timeout, "end of the flood")[0]


def plan(size: int, text: str = "a line of the engine\n", **more: object) -> dict[str, str]:
    return {"flood": json.dumps({"bytes": size, "text": text, "rate": 20e6, **more})}


def peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def written(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.log*"))


def seconds_of_requests(babysat, count: int, rate: float = 10) -> list[float]:
    """How long each of `count` requests to the engine takes; they are sent at fixed times."""
    took = []
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        before = time.monotonic()
        assert babysat.ask_engine("/health")[0] == 200
        took.append(time.monotonic() - before)
    return took


@pytest.mark.parametrize(
    ("seconds", "longest"), [(2, 1.0), pytest.param(10, 0.5, marks=pytest.mark.slow)]
)
def test_r08_a_flood_on_both_streams_is_read_and_no_request_waits_for_it(
    babysit, tmp_path, seconds: int, longest: float
) -> None:
    limits = {"log_max_bytes": 5 * MIB, "log_files": 100}
    flood_plan = plan(20_000_000 * seconds, "a line \xff of the engine\n", wait=True)
    babysat = babysit(switches=flood_plan, babysitter=limits)
    babysat.wait_for_state("ready")
    quiet = seconds_of_requests(babysat, 10 * seconds)
    babysat.switch("go")
    loud = seconds_of_requests(babysat, 10 * seconds)
    flood = flooded(babysat)
    assert babysat.state() == "ready"
    memory = peak_memory(babysat.program.pid)
    lost = babysat.get("/info")[1]["log_lost_bytes"]
    babysat.program.stop()
    logs = tmp_path / "logs"
    print(
        f"R8 flood of {flood['bytes'] / flood['seconds'] / 1e6:.0f} MB/s for {seconds} s: longest"
        f" write {flood['longest'] * 1000:.0f} ms, requests p99 {p99(loud):.0f} ms"
        f" (quiet {p99(quiet):.0f} ms), babysitter {memory / 1e6:.0f} MB, {lost} bytes dropped"
    )
    assert flood["longest"] <= longest
    assert memory <= 150e6
    hello = len(b"engine says hello\n")
    assert written(logs) + lost == flood["bytes"] + hello
    assert all(file.stat().st_size <= 5 * MIB for file in logs.glob("*.log*"))


def p99(seconds: list[float]) -> float:
    """In milliseconds."""
    return percentile(seconds, 0.99) * 1000


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
    assert written(tmp_path / "logs") <= 70_000
    babysat.program.wait_for_line(r"engine log incomplete .* lost_bytes=\d{7}")


def test_r08_bytes_that_are_no_text_do_no_harm(babysit, tmp_path) -> None:
    babysat = babysit(switches=plan(MIB, "\xff\xfe\x00\r\n"))
    flooded(babysat)
    babysat.wait_for_state("ready")
    os.kill(babysat.engine_pid(), 9)
    wait_until(lambda: babysat.get("/info")[1]["last_exit"])
    assert "\ufffd" in babysat.get("/info")[1]["last_exit"]["log"][0]


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[str, ...]:
    """A command before which the folder of logs becomes a file system of one megabyte."""
    folder = tmp_path / "logs"
    folder.mkdir()
    allowed = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip("this machine allows no namespaces, and so no small disk")
    mount = f"mount -t tmpfs -o size=1m tmpfs '{folder}' && exec \"$@\""
    return ("unshare", "-rm", "sh", "-c", mount, "sh")


def test_r08_a_full_disk_does_not_stop_the_engine(babysit, tmp_path, small_disk) -> None:
    babysat = babysit(switches=plan(4 * MIB, wait=True), prefix=small_disk)
    babysat.wait_for_state("ready")
    logs = Path(f"/proc/{babysat.program.pid}/root{tmp_path}/logs")  # as the babysitter sees it
    filler = logs / "filler"
    filler.write_bytes(b"x" * (MIB // 2))
    babysat.switch("go")
    loud = seconds_of_requests(babysat, 10)
    flood = flooded(babysat)
    wait_until(lambda: babysat.get("/info")[1]["log_lost_bytes"] > 3 * MIB, what="bytes lost")
    babysat.program.wait_for_line("engine log incomplete .*No space left on device")
    assert babysat.state() == "ready"
    assert written(logs) <= MIB // 2

    def accounted_for() -> int:
        return written(logs) + babysat.get("/info")[1]["log_lost_bytes"]

    said = flood["bytes"] + len(b"engine says hello\n")
    wait_until(lambda: accounted_for() == said, what="every byte is in the file or counted")
    print(
        f"R8 disk full: longest write {flood['longest'] * 1000:.0f} ms, requests p99"
        f" {p99(loud):.0f} ms"
    )
    assert flood["longest"] <= 1.0
    assert peak_memory(babysat.program.pid) <= 150e6

    filler.unlink()
    hellos = (logs / "engine_test.log").read_bytes().count(b"engine says hello")
    os.kill(babysat.engine_pid(), 9)
    wait_until(
        lambda: (logs / "engine_test.log").read_bytes().count(b"engine says hello") > hellos,
        what="the log goes on when there is room again",
    )


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


def test_a_file_that_failed_is_opened_anew(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    file = RotatedFile(tmp_path / "log", LogLimits())
    with pytest.raises(OSError, match="No space left"):
        file.write(b"lost")
    (tmp_path / "log").unlink()
    file.write(b"kept")
    file.close()
    assert (tmp_path / "log").read_bytes() == b"kept"
    assert file.written == 4


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


def test_a_whole_chunk_of_ordinary_lines_is_passed_on_as_it_is() -> None:
    chunk = (b"a line of the engine\n" * 4000)[:65536]  # it ends within a line
    cap = LineCap()
    for _ in range(3):
        assert cap.feed(chunk) is chunk, "to take every chunk apart costs a third of a processor"
    assert cap.cut == 0


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_the_tail_has_the_last_lines_however_the_bytes_arrive(step: int) -> None:
    data = b"".join(f"line {n}\r\n".encode() for n in range(200)) + b"unfinished"
    tail = Tail(lines=3)
    for at in range(0, len(data), step):
        tail.feed(data[at : at + step])
    assert tail.lines() == ("line 197", "line 198", "line 199", "unfinished")


def test_r08_a_full_disk_under_the_babysitters_own_output_keeps_nothing_from_working(
    babysit, registry
) -> None:
    full = ("sh", "-c", 'exec "$@" >/dev/full', "sh")
    babysat = babysit(registry_url=registry.url, prefix=full)
    wait_until(lambda: registry.status(babysat.engine_name) == "running", what="registered")
    assert babysat.get("/health")[0] == 200
    assert babysat.program.stop() == 0
    assert registry.services == {}
