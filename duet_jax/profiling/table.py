"""Benchmark results as a table."""

from collections.abc import Iterator, Mapping
from typing import Any


def table(results: Mapping[str, Any]) -> str:
    """Returns the results of a benchmark as a table in Markdown."""
    rows = [("quantity", "value"), ("---", "---"), *_rows(results)]
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def _rows(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    config = results["config"]
    yield "devices", results["devices"]
    yield (
        "what",
        f"{config['method']}, {config['encoder']['name']}, {config['compute_dtype']}, "
        f"batch {results['batch_size']}, {config['dataset']['image_size']} px",
    )
    seconds = results["compile_seconds"]
    text = f"{seconds['cold']:.1f} s"
    if "cached" in seconds:
        text += f", from the cache {seconds['cached']:.1f} s"
    yield "compiled in", text
    encoder = results["encoder"]
    yield (
        "encoder",
        f"{encoder['features']} features, {encoder['parameters']:,} parameters, "
        f"{encoder['operations_per_image'] / 1e9:.3g} GFLOP for a view",
    )
    timed = "step" in results  # not of --compile_only
    if timed:
        yield from _times(results)
    operations = results["operations"]
    yield (
        "operations of a step",
        f"{operations['counted'] / 1e9:,.1f} GFLOP in products and convolutions; "
        f"{operations['xla'] / 1e9:,.1f} by XLA",
    )
    if timed:
        yield from _rates(results["rate"])
    memory = results["memory"]
    peak = memory["peak"] or memory["peak_of_the_process"]
    most = f"{peak / 2**20:,.0f} MiB at most; " if timed else ""
    yield (
        "memory",
        f"{most}the step: {memory['temporaries'] / 2**20:,.0f} MiB besides "
        f"{memory['arguments'] / 2**20:,.0f} MiB of arguments",
    )
    host = results["host"] if timed else {}
    for what in ("device", "images") if host else ():
        share = 100 * host[f"waits_for_{what}"]
        yield f"host waits for the {what}", f"{share:.1f} % of the time"


def _times(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    step = results["step"]
    yield (
        "step",
        f"{step['median_ms']:.2f} ms ({step['fastest_ms']:.2f} to "
        f"{step['slowest_ms']:.2f}, {step['calls']} calls of {step['steps_per_call']})",
    )
    yield "images per second", f"{results['images_per_second']:,.0f}"
    if results["parts_ms"]:  # --brief leaves them out
        yield from _shares(results["parts_ms"], step["median_ms"])


def _rates(rate: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    most = ", ".join(f"{v:.2f} in {k}" for k, v in rate["ceiling_tflops"].items())
    yield "rate of a device", f"{rate['tflops_per_device']:.3f} TFLOP/s"
    yield "matrix ceiling", f"{most} TFLOP/s"
    yield "share of the ceiling", f"{100 * rate['share_of_ceiling']:.1f} %"


def _shares(parts: Mapping[str, float], step: float) -> Iterator[tuple[str, str]]:
    """Yields the time of each part alone; the step may fuse them and be faster."""
    found = {
        "augmentation": parts["augmentation"],
        "forward": parts["forward"],
        "backward": parts["forward_and_backward"] - parts["forward"],
        "update": parts["update"],
    }
    for name, value in found.items():
        yield (
            f"{name}, alone",
            f"{value:.2f} ms, {100 * value / step:.1f} % of the step",
        )
