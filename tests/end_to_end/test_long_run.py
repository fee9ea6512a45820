"""What a long training uses, in a run that is short."""

import statistics

from benchmarks import long_run

EPOCHS = 36
FIRST = 12  # epochs in which memory still settles
APART = 6  # epochs between two that are compared
# glibc reads these when a program starts; else it keeps what threads have freed.
FREE_AT_ONCE = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


def growth(looks, name):
    """Returns what six epochs add to the least of `name` in an epoch, in the median.

    A leak adds to every pair of epochs. What is taken or given back once, as memory
    that an allocator keeps, shows in a few pairs only.
    """
    least = {}
    for each in looks:
        if each["epoch"] > FIRST:
            least[each["epoch"]] = min(each[name], least.get(each["epoch"], each[name]))
    pairs = [
        least[late] - least[late - APART] for late in least if late - APART in least
    ]
    assert len(pairs) > (EPOCHS - FIRST) / 2
    return statistics.median(pairs)


def test_memory_files_and_threads_stay(tmp_path, monkeypatch):
    """`benchmarks/long_run.py` watches 2,000 epochs; a leak shows in a few as well.

    Each epoch has an evaluation and a checkpoint.
    """
    for name, value in FREE_AT_ONCE.items():
        monkeypatch.setenv(name, value)
    looks = long_run.watch(tmp_path / "run", EPOCHS, checkpoint_every=1, seconds=0.1)
    # TensorStore keeps 0.1 MiB of a checkpoint: 0.6 in six epochs.
    assert growth(looks, "memory_mib") < 3
    assert growth(looks, "files") <= 1
    assert growth(looks, "threads") <= 1
