"""Compares the memory of NT-Xent with all candidates at once and in blocks.

    python benchmarks/contrastive_memory.py

Prints a Markdown table of the temporary memory that the compiler plans for the loss and
its gradient, on JAX's default device. Nothing is run, so the memory may exceed that of
the device.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from duet_jax import losses
from duet_jax.runtime import devices

PAIRS = (1024, 4096, 16384, 65536)
DIMENSIONS = 128
TEMPERATURE = 0.1
BLOCK = 1024


def temporary_bytes(pairs: int, block: int) -> int:
    """Returns the compiler's temporary memory for the loss and its gradient.

    Args:
      pairs: number of examples, with two embeddings each.
      block: candidates compared at once.
    """

    def loss(embeddings1: jax.Array, embeddings2: jax.Array) -> jax.Array:
        return losses.nt_xent(embeddings1, embeddings2, TEMPERATURE, block=block).loss

    embeddings = jax.ShapeDtypeStruct((pairs, DIMENSIONS), jnp.float32)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    compiled = step.lower(embeddings, embeddings).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Prints the table."""
    devices.select("auto")
    print(f"{devices.describe()}, jax {jax.__version__}, {DIMENSIONS} dimensions\n")
    print(f"| pairs | all candidates at once | in blocks of {BLOCK} |")
    print("|---:|---:|---:|")
    for pairs in PAIRS:
        at_once, in_blocks = (
            temporary_bytes(pairs, block) / 2**20 for block in (2 * pairs, BLOCK)
        )
        print(f"| {pairs} | {at_once:,.1f} MiB | {in_blocks:,.1f} MiB |", flush=True)


if __name__ == "__main__":
    main()
