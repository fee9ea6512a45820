"""What a long training uses, in a run that is short."""

import forked

from benchmarks import long_run

EPOCHS = 36
# glibc keeps what threads have freed, up to 26 MiB more or less from one third of a run
# to the next; so told, 2 to 7 MiB more, which is what there is to measure.
FREE_AT_ONCE = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


def test_memory_files_and_threads_stay(tmp_path, monkeypatch):
    """`benchmarks/long_run.py` watches 2,000 epochs; a leak shows in a few as well.

    Each epoch has an evaluation and a checkpoint.
    """
    monkeypatch.setattr(long_run, "subprocess", forked.subprocesses)
    for name, value in FREE_AT_ONCE.items():
        monkeypatch.setenv(name, value)
    looks = long_run.watch(tmp_path / "run", EPOCHS, checkpoint_every=1, seconds=0.1)
    later = [each for each in looks if each["epoch"] > EPOCHS / 3]
    middle, end = (
        [each for each in later if low < each["epoch"] <= high]
        for low, high in ((EPOCHS / 3, EPOCHS * 2 / 3), (EPOCHS * 2 / 3, EPOCHS))
    )
    assert len(middle) > 5
    assert len(end) > 5

    def least(name, part):
        return min(each[name] for each in part)

    # Twelve epochs on: 0.1 MiB each is what TensorStore keeps of a checkpoint.
    assert least("memory_mib", end) - least("memory_mib", middle) < 10
    assert least("files", end) <= least("files", middle) + 2
    assert least("threads", end) <= least("threads", middle) + 4
