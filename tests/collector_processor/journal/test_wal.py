"""The journal: what was acknowledged comes back, in order, whatever happened to process, file or disk."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.config import JournalConfig
from collector_processor.journal import wal
from collector_processor.journal.segment import FRAME, HEADER, ReadCounters, read, segments_in
from collector_processor.journal.wal import Journal, JournalLockedError, JournalUnavailableError
from collector_processor.model import Payload, Signal
from tests.examples import examples

DURABILITIES = ("fsync", "os")
EVERY = pytest.mark.parametrize("durability", DURABILITIES)


def payload(number: int, size: int = 20, tenant: str = "t") -> Payload:
    data = random.Random(number).randbytes(size)
    return Payload(Signal(number % 2), tenant, data, 1_700_000_000_000_000_000 + number)


def opened(folder: Path, **config: Any) -> Journal:
    return Journal.open(folder, JournalConfig(**config))


def filled(folder: Path, count: int, size: int = 20, **config: Any) -> None:
    journal = opened(folder, **config)
    for number in range(1, count + 1):
        assert journal.append(payload(number, size)) == number
    journal.close()


def replayed(folder: Path, from_position: int = 0) -> list[tuple[int, Payload]]:
    journal = opened(folder)
    try:
        return list(journal.replay(from_position))
    finally:
        journal.close()


@EVERY
def test_what_is_appended_comes_back_in_order(tmp_path: Path, durability: str) -> None:
    filled(tmp_path, 50, durability=durability)
    assert replayed(tmp_path) == [(number, payload(number)) for number in range(1, 51)]
    assert replayed(tmp_path, 48) == [(number, payload(number)) for number in (48, 49, 50)]
    assert replayed(tmp_path, 51) == []


@examples(30)
@given(
    st.lists(
        st.builds(
            Payload,
            st.sampled_from(Signal),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
            st.binary(max_size=500),
            st.integers(-(2**63), 2**63 - 1),
        ),
        max_size=12,
    ),
    st.integers(200, 2000),
)
def test_any_payload_comes_back(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[Payload], bytes_max: int
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal = opened(folder, durability="os", segment_bytes_max=bytes_max)
    for one in payloads:
        journal.append(one)
    assert [found for _, found in journal.replay()] == payloads
    journal.close()
    assert [found for _, found in replayed(folder)] == payloads


def test_without_durability_nothing_is_written_and_positions_go_on(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, JournalConfig(durability="none"), at_least=7)
    assert [journal.append(payload(1)), journal.append(payload(2))] == [7, 8]
    assert journal.size_bytes == 0
    journal.close()
    assert replayed(tmp_path) == []


def test_positions_go_on_after_a_restart_and_never_below_a_checkpoint(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    journal = opened(tmp_path)
    assert journal.position == 4
    assert journal.append(payload(4)) == 4
    journal.close()
    for segment in segments_in(tmp_path):
        segment.path.unlink()
    journal = Journal.open(tmp_path, JournalConfig(), at_least=100)
    assert journal.append(payload(5)) == 100
    journal.close()
    assert [position for position, _ in replayed(tmp_path)] == [100]


@EVERY
def test_many_threads_append_at_once(tmp_path: Path, durability: str) -> None:
    delivered: list[tuple[int, Payload]] = []
    config = JournalConfig(durability=durability, segment_bytes_max=2000)  # type: ignore[arg-type]
    journal = Journal.open(tmp_path, config, on_durable=lambda position, one: delivered.append((position, one)))
    given_positions: list[int] = []

    def run(first: int) -> None:
        for number in range(first, first + 40):
            position = journal.append(payload(number))
            assert any(found == position for found, _ in delivered[-200:])
            given_positions.append(position)

    threads = [threading.Thread(target=run, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert sorted(given_positions) == list(range(1, 321))
    assert [position for position, _ in delivered] == list(range(1, 321)), "a replay has the order of delivery"
    assert replayed(tmp_path) == delivered
    assert len(segments_in(tmp_path)) > 5


def test_one_sync_serves_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(descriptor: int) -> None:
        time.sleep(0.02)

    monkeypatch.setattr(os, "fdatasync", slow)
    journal = opened(tmp_path)
    threads = [threading.Thread(target=lambda n=n: [journal.append(payload(n)) for _ in range(5)]) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.counters.appended == 80
    assert journal.counters.syncs < 40
    journal.close()


def test_nothing_is_acknowledged_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_sync = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: may_sync.wait(10))
    journal = opened(tmp_path)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (journal.append(payload(1)), done.set()))
    thread.start()
    assert not done.wait(0.2)
    may_sync.set()
    assert done.wait(10)
    thread.join()
    journal.close()


@EVERY
def test_segments_end_at_their_size(tmp_path: Path, durability: str) -> None:
    filled(tmp_path, 30, 400, durability=durability, segment_bytes_max=1500)
    sizes = [segment.path.stat().st_size for segment in segments_in(tmp_path)]
    assert len(sizes) == 10
    assert max(sizes) <= 1500 + HEADER.size + 3 * (FRAME.size + 1)
    assert [position for position, _ in replayed(tmp_path)] == list(range(1, 31))


def test_a_payload_larger_than_a_segment_has_one_for_itself(tmp_path: Path) -> None:
    filled(tmp_path, 3, 5000, segment_bytes_max=1000)
    assert len(segments_in(tmp_path)) == 3
    assert len(replayed(tmp_path)) == 3


def test_segments_end_at_their_age(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_age_s=0.05)
    for number in (1, 2, 3):
        journal.append(payload(number))
        time.sleep(0.06)
    journal.close()
    assert [segment.first for segment in segments_in(tmp_path)] == [1, 2, 3]


def test_truncation_frees_what_no_checkpoint_needs(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_bytes_max=1000)
    for number in range(1, 11):
        journal.append(payload(number, 300))
    assert [segment.first for segment in segments_in(tmp_path)] == [1, 4, 7, 10]
    before = journal.size_bytes
    assert journal.truncate(6) == before - journal.size_bytes > 900
    assert [position for position, _ in journal.replay()] == list(range(4, 11))
    assert [position for position, _ in journal.replay(6)] == list(range(6, 11))
    journal.truncate(100)
    assert [position for position, _ in journal.replay()] == [10], "the segment being written to stays"
    assert journal.append(payload(11)) == 11
    journal.close()
    assert [position for position, _ in replayed(tmp_path)] == [10, 11]
    assert sum(segment.path.stat().st_size for segment in segments_in(tmp_path)) == journal.size_bytes


def test_segments_are_kept_for_their_retention(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_bytes_max=300, retention_s=3600)
    for number in range(1, 6):
        journal.append(payload(number, 300))
    assert journal.truncate(5) == 0
    old = time.time() - 4000
    for segment in segments_in(tmp_path)[:2]:
        os.utime(segment.path, (old, old))
    assert journal.truncate(5) > 0
    assert [segment.first for segment in segments_in(tmp_path)] == [3, 4, 5]
    journal.close()


def test_a_replay_stops_where_it_is_told_and_passes_what_is_truncated_meanwhile(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_bytes_max=300)
    for number in range(1, 9):
        journal.append(payload(number, 100))
    assert [position for position, _ in journal.replay(3, 6)] == [3, 4, 5]
    replay = journal.replay()
    assert next(replay)[0] == 1
    journal.truncate(5)
    assert [position for position, _ in replay] == [2, 5, 6, 7, 8]
    journal.close()


def test_a_full_journal_refuses_until_it_is_truncated(tmp_path: Path) -> None:
    journal = opened(tmp_path, bytes_max=3000, segment_bytes_max=1000)
    while journal.size_bytes < 2700:
        journal.append(payload(0, 300))
    kept = journal.position - 1
    with pytest.raises(JournalUnavailableError) as caught:
        journal.append(payload(0, 300))
    assert caught.value.reason == "journal_full"
    assert journal.position == kept + 1
    journal.truncate(kept)
    assert journal.append(payload(0)) == kept + 1
    journal.close()


@EVERY
def test_a_disk_that_is_full_for_a_while_costs_no_acknowledged_payload(
    tmp_path: Path, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path, durability=durability, segment_bytes_max=2000)
    writev, room = os.writev, [700]

    def limited(descriptor: int, buffers: list[bytes]) -> int:
        """A disk with `room` bytes left: writes what fits, and ENOSPC when nothing does."""
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = b"".join(buffers)[: room[0]]
        room[0] -= len(part)
        return writev(descriptor, [part])

    monkeypatch.setattr(os, "writev", limited)
    monkeypatch.setattr(os, "write", lambda descriptor, part: limited(descriptor, [bytes(part)]))
    acknowledged, refused = [], []
    for number in range(60):
        if number == 40:
            room[0] = 1 << 30
        try:
            acknowledged.append((journal.append(payload(number, 100)), payload(number, 100)))
        except JournalUnavailableError as error:
            refused.append(error.reason)
    assert refused == ["disk_full"] * len(refused)
    assert len(refused) >= 34
    assert len(acknowledged) >= 23
    assert list(journal.replay()) == acknowledged
    assert (journal.read_counters.corrupt, journal.read_counters.torn) == (0, 0)
    journal.close()
    assert replayed(tmp_path) == acknowledged


def test_after_a_failed_sync_nothing_in_doubt_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path)
    assert journal.append(payload(1)) == 1
    fdatasync = os.fdatasync

    def failing(descriptor: int) -> None:
        time.sleep(0.05)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    reasons: list[str] = []

    def append(number: int) -> None:
        try:
            journal.append(payload(number))
        except JournalUnavailableError as error:
            reasons.append(error.reason)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reasons == ["io_error"] * 4
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    assert journal.append(payload(6)) == 2
    journal.close()
    assert replayed(tmp_path) == [(1, payload(1)), (2, payload(6))]


@pytest.mark.parametrize("call", ["writev", "fdatasync"])
def test_what_was_refused_is_not_read_again_when_something_has_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It may still be there: the cut fails too, or a power cut undoes it. What follows was decided without it."""
    journal = opened(tmp_path)
    journal.append(payload(1))

    def done_and_failed(descriptor: int, *arguments: Any) -> None:
        succeeding(descriptor, *arguments)
        raise OSError(errno.EIO, "Input/output error")

    def stuck(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        succeeding = getattr(os, call)
        patched.setattr(os, call, done_and_failed)
        patched.setattr(os, "ftruncate", stuck)
        with pytest.raises(JournalUnavailableError):
            journal.append(payload(2))
        assert list(journal.replay()) == [(1, payload(1))]
    assert journal.append(payload(3)) == 2
    first, second = segments_in(tmp_path)
    assert [number for number, _ in read(first, ReadCounters())] == [1, 2], "the refused one is still there"
    kept = [(1, payload(1)), (2, payload(3))]
    tail = journal.tail(0)
    assert tail.read(1) + tail.read(1) == kept
    assert tail.read(1) == []
    journal.close()
    assert replayed(tmp_path) == kept
    os.truncate(second.path, HEADER.size)
    assert replayed(tmp_path) == kept[:1]
    journal = opened(tmp_path)
    assert journal.append(payload(4)) > 2
    journal.close()


def test_what_a_killed_writer_left_is_synced_before_it_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a replay tells what a power cut then takes away."""
    filled(tmp_path, 3, durability="os")
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    opened(tmp_path).close()
    assert synced == [segments_in(tmp_path)[-1].path.stat().st_ino]

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", failing)
        with pytest.raises(OSError, match="error"):
            opened(tmp_path)
    assert [position for position, _ in replayed(tmp_path)] == [1, 2, 3]


def test_nothing_is_acknowledged_from_a_file_whose_name_is_not_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal = opened(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        for _ in range(2):
            with pytest.raises(JournalUnavailableError):
                journal.append(payload(1))
        assert segments_in(tmp_path) == []
    assert journal.append(payload(1)) == 1
    journal.close()
    assert replayed(tmp_path) == [(1, payload(1))]


def test_a_frame_that_cannot_be_taken_back_leaves_its_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path)
    journal.append(payload(1))
    writev = os.writev

    def half(descriptor: int, buffers: list[bytes]) -> int:
        writev(descriptor, [b"".join(buffers)[:30]])
        raise OSError(errno.EIO, "Input/output error")

    def stuck(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "writev", half)
    monkeypatch.setattr(os, "ftruncate", stuck)
    with pytest.raises(JournalUnavailableError):
        journal.append(payload(2))
    monkeypatch.setattr(os, "writev", writev)
    assert journal.append(payload(3)) == 2
    journal.close()
    assert replayed(tmp_path) == [(1, payload(1)), (2, payload(3))]
    assert len(segments_in(tmp_path)) == 2


def test_a_closed_journal_refuses(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(JournalUnavailableError) as caught:
        journal.append(payload(1))
    assert caught.value.reason == "closed"


def test_two_processes_never_write_the_same_journal(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    with pytest.raises(JournalLockedError):
        opened(tmp_path)
    journal.close()
    opened(tmp_path).close()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir(mode=0o755)
    filled(folder, 1)
    assert folder.stat().st_mode & 0o077 == 0
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


def contents(folder: Path) -> bytes:
    [segment] = segments_in(folder)
    return segment.path.read_bytes()


def test_every_cut_of_the_file_gives_what_is_whole(tmp_path: Path) -> None:
    filled(tmp_path, 5, 30)
    [segment] = segments_in(tmp_path)
    whole = contents(tmp_path)
    found = []
    for size in range(len(whole) + 1):
        segment.path.write_bytes(whole[:size])
        counters = ReadCounters()
        got = list(read(segment, counters))
        assert got == [(number, payload(number, 30)) for number in range(1, len(got) + 1)]
        frame_end = HEADER.size + len(got) * (FRAME.size + 1 + 30)
        assert counters.torn == (size > frame_end)
        assert counters.corrupt == 0
        found.append(len(got))
    assert found[-1] == 5
    assert found == sorted(found)


def test_a_flipped_bit_costs_one_frame_and_is_counted(tmp_path: Path) -> None:
    filled(tmp_path, 6, 30)
    [segment] = segments_in(tmp_path)
    whole = contents(tmp_path)
    frame_size = (len(whole) - HEADER.size) // 6
    everything = {number: payload(number, 30) for number in range(1, 7)}
    for at in range(len(whole)):
        for bit in (0, 3, 7):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            segment.path.write_bytes(damaged)
            counters = ReadCounters()
            got = dict(read(segment, counters))
            if at < HEADER.size:
                assert got in (everything, {}), "the head may say that it is of another version"
                continue
            lost = (at - HEADER.size) // frame_size + 1
            assert got == {number: one for number, one in everything.items() if number != lost}
            assert (counters.corrupt, counters.torn) == ((0, 1) if lost == 6 else (1, 0))


def test_random_damage_never_stops_a_reader_nor_forges_a_payload(tmp_path: Path) -> None:
    filled(tmp_path, 8, 60)
    [segment] = segments_in(tmp_path)
    whole = contents(tmp_path)
    everything = [(number, payload(number, 60)) for number in range(1, 9)]
    rng = random.Random(11)
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(damaged))
            end = at + rng.randrange(1, 40)
            damaged[at:end] = rng.choice((b"", rng.randbytes(9), bytes(20), bytes(damaged[at:end]) * 2))
        segment.path.write_bytes(damaged)
        got = list(read(segment, ReadCounters()))
        positions = [position for position, _ in got]
        assert positions == sorted(set(positions))
        assert all(one in everything for one in got)


def test_a_frame_inside_a_payload_never_passes_for_one(tmp_path: Path) -> None:
    """Who can send anything could send the bytes of a frame with another's tenant in it."""
    other = tmp_path / "other"
    filled(other, 9, 30)
    forged = contents(other)[HEADER.size :]
    journal = opened(tmp_path / "journal")
    journal.append(payload(1))
    journal.append(Payload(Signal.LOGS, "attacker", forged, 5))
    journal.append(payload(3))
    journal.close()
    [segment] = segments_in(tmp_path / "journal")
    damaged = bytearray(segment.path.read_bytes())
    damaged[damaged.index(b"attacker") - 30] ^= 1
    segment.path.write_bytes(damaged)
    assert [position for position, _ in read(segment, ReadCounters())] == [1, 3]


def test_a_torn_end_is_left_behind_and_writing_goes_on(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    [segment] = segments_in(tmp_path)
    segment.path.write_bytes(contents(tmp_path)[:-5])
    journal = opened(tmp_path)
    assert journal.append(payload(33)) == 3
    assert list(journal.replay()) == [(1, payload(1)), (2, payload(2)), (3, payload(33))]
    assert journal.read_counters.torn == 1
    journal.close()


def test_a_segment_of_another_version_is_not_read_as_this_one(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    [segment] = segments_in(tmp_path)
    whole = bytearray(contents(tmp_path))
    whole[8] = 2
    segment.path.write_bytes(whole)
    counters = ReadCounters()
    assert list(read(segment, counters)) == []
    assert counters.unreadable_files == 1


def test_a_missing_or_foreign_file_is_not_fatal(tmp_path: Path) -> None:
    filled(tmp_path, 4, 300, segment_bytes_max=300)
    (tmp_path / "notes.txt").write_text("not a segment")
    segments_in(tmp_path)[1].path.unlink()
    assert [position for position, _ in replayed(tmp_path)] == [1, 3, 4]


def test_a_tenant_with_too_long_a_name_is_refused_at_once(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    with pytest.raises(ValueError, match="255"):
        journal.append(payload(1, tenant="t" * 256))
    assert journal.append(payload(1, tenant="t" * 255)) == 1
    journal.close()


KILLED = """
import sys, threading
from pathlib import Path
from collector_processor.config import JournalConfig
from collector_processor.journal.wal import Journal
from collector_processor.model import Payload, Signal

journal = Journal.open(Path(sys.argv[1]), JournalConfig(durability=sys.argv[2], segment_bytes_max=50_000))
lock = threading.Lock()

def run(thread):
    number = 0
    while True:
        number += 1
        text = f"{thread}-{number}-" + "x" * (number % 700)
        position = journal.append(Payload(Signal.LOGS, "t", text.encode(), number))
        with lock:
            print(position, text.split("x")[0], flush=True)

for thread in range(4):
    threading.Thread(target=run, args=(thread,)).start()
"""


@pytest.fixture
def root() -> str:
    return str(Path(__file__).parents[3])


@pytest.mark.slow
@EVERY
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path, durability: str, root: str) -> None:
    rng = random.Random(5)
    acknowledged: dict[int, str] = {}
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), durability],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        killer = threading.Timer(rng.uniform(0.1, 0.7), process.kill)
        killer.start()
        lines = [first, *process.stdout]
        killer.join()
        process.wait()
        process.stdout.close()
        for line in lines:
            if line.endswith("\n"):
                position, text = line.split()
                assert int(position) not in acknowledged
                acknowledged[int(position)] = text
    kept = {position: one.data.decode().split("x")[0] for position, one in replayed(tmp_path)}
    assert len(acknowledged) > 100
    assert {position: kept.get(position) for position in acknowledged} == acknowledged


@pytest.mark.slow
def test_a_real_disk_that_is_full_recovers_by_itself(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a small disk that can be full takes the right to mount one (root)")
    try:
        journal = opened(disk / "journal", segment_bytes_max=100_000)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(700_000))
        acknowledged, refused = [], []
        for number in range(200):
            if len(refused) == 20:
                ballast.unlink(missing_ok=True)
            try:
                acknowledged.append((journal.append(payload(number, 5000)), payload(number, 5000)))
            except JournalUnavailableError as error:
                refused.append(error.reason)
        assert refused[:20] == ["disk_full"] * 20
        assert acknowledged[-1][1].arrival_ns > acknowledged[0][1].arrival_ns + 60
        assert list(journal.replay()) == acknowledged
        journal.close()
        assert replayed(disk / "journal") == acknowledged
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_appending_costs_little_more_than_the_bytes(tmp_path: Path) -> None:
    """At `os`: the checksum and a write; 150 us of CPU for the 200 kB of a thousand records is 0.15 us a record."""
    journal = opened(tmp_path, durability="os")
    one = Payload(Signal.TRACES, "t", random.Random(1).randbytes(200_000), 1)
    costs = []
    for _ in range(10):
        began = time.process_time()
        for _ in range(10):
            journal.append(one)
        costs.append((time.process_time() - began) / 10)
    journal.close()
    assert min(costs) < 600e-6


def test_the_first_position(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert journal.position == wal.FIRST_POSITION
    journal.close()
