"""Breaks the program in many small ways, and tells whether the tests notice.

    python tests/tools/mutations.py                     # of this checkout
    python tests/tools/mutations.py --checkout=../old   # of another one
    python tests/tools/mutations.py --only='*seal*'

Each row of MUTATIONS replaces one text of one file, in a copy of the checkout, and runs
the tests that are about it, which have to fail. Before, they all have to pass there as
it is. The exit status is 1 if anything is not noticed.
"""

import argparse
import fnmatch
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
_COPIED = ("duet_jax", "configs", "tests", "benchmarks", "docs", "examples")


class Mutation(NamedTuple):
    """A defect.

    Attributes:
      name: what is wrong then.
      file: below `duet_jax`.
      old: a text that occurs there once.
      new: what stands in its place.
      tests: files and directories below `tests`, or one test of a file, that notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _rows(tests: str, file: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    paths = tuple(tests.split())
    return [Mutation(name, file, old, new, paths) for name, old, new in changes]


MUTATIONS: list[Mutation] = [
    *_rows(
        "losses",
        "losses/nt_xent.py",
        ("contrast of the wrong sign", "(largest - positive)", "(positive - largest)"),
        (
            "temperature squared",
            "anchors / jnp.sqrt(temperature)",
            "anchors / temperature",
        ),
        (
            "directions averaged",
            "masked_mean(jnp.sum(loss, axis=0), mask)",
            "masked_mean(jnp.mean(loss, axis=0), mask)",
        ),
        ("top-5 of four", "accuracy(5)", "accuracy(4)"),
        (
            "ties count for the positive",
            "~(logits < positive[..., None])",
            "(logits > positive[..., None])",
        ),
        (
            "the gradient of one direction",
            "(weight + weight[::-1])[..., None]",
            "weight[..., None]",
        ),
        (
            "the anchor is its own negative",
            "position != own, place",
            "position >= 0, place",
        ),
    ),
    *_rows(
        "losses",
        "losses/structure.py",
        (
            "divergence twice as large",
            "jnp.sum(terms, axis=1) / 2",
            "jnp.sum(terms, axis=1)",
        ),
        ("mixture not halved", " - jnp.log(2.0).astype(log_p.dtype)", ""),
    ),
    *_rows(
        "losses test_golden.py",
        "losses/targets.py",
        (
            "Gaussian of another width",
            "jnp.square(distance) / 2",
            "jnp.square(distance)",
        ),
        ("half a circle", "jnp.cos(2 * jnp.pi * turns)", "jnp.cos(jnp.pi * turns)"),
        (
            "a grid without its end",
            "jnp.linspace(0, 1, num_bins",
            "jnp.linspace(0, 0.99, num_bins",
        ),
    ),
    *_rows(
        "losses",
        "losses/prediction.py",
        (
            "ties count for the label",
            "~(logits < own[:, None])",
            "(logits > own[:, None])",
        ),
    ),
    *_rows(
        "augmentations",
        "augmentations/geometric.py",
        (
            "rotation the other way",
            "rows = sine * x + cosine * y",
            "rows = -sine * x + cosine * y",
        ),
        (
            "structure of an angle mirrored",
            '(params["degrees"] + 180) / 360',
            '(180 - params["degrees"]) / 360',
        ),
        (
            "structure of the crop's width",
            '(frame.side - params["height"])',
            '(frame.side - params["width"])',
        ),
        (
            "crops as large as the image",
            "(sides < image_side), axis=0",
            "(sides <= image_side), axis=0",
        ),
        (
            "quarter turns on a bin's edge",
            "astype(jnp.float32) / 4 + 0.125",
            "astype(jnp.float32) / 4",
        ),
    ),
    *_rows(
        "augmentations",
        "augmentations/photometric.py",
        ("other grey", "0.587 * green", "0.578 * green"),
        ("blur repeats the border", 'mode="reflect"', 'mode="edge"'),
        (
            "solarize without a clip",
            "raised = jnp.clip(images + per_image(addition), 0, 1)",
            "raised = images + per_image(addition)",
        ),
        (
            "jitter in one order",
            "order[place], *outcomes",
            "orders[0][place], *outcomes",
        ),
    ),
    *_rows(
        "augmentations",
        "augmentations/stack.py",
        (
            "chosen images are left alone",
            "jnp.where(chosen, drawn, identity)",
            "jnp.where(chosen, identity, drawn)",
        ),
        (
            "all stages share a key",
            "jax.random.fold_in(key, index)",
            "jax.random.fold_in(key, 0)",
        ),
    ),
    *_rows(
        "methods",
        "methods/base.py",
        (
            "views swapped in evaluation",
            "return Views(first, second)",
            "return Views(second, first)",
        ),
        ("both views alike", "keys = jax.random.split(key)\n", "keys = (key, key)\n"),
        (
            "the probe trains the encoder",
            "features1 = jax.lax.stop_gradient(features1)\n",
            "",
        ),
    ),
    *_rows(
        "training/test_health.py",
        "methods/base.py",
        ("spread not scaled", " * features.shape[1] ** 0.5", ""),
    ),
    *_rows(
        "methods",
        "methods/duet.py",
        (
            "structure without its weight",
            "self.structure_weight * structure",
            "structure",
        ),
        (
            "the target of the other view",
            "_structure_loss(group, features1, views.first, mask)",
            "_structure_loss(group, features1, views.second, mask)",
        ),
        (
            "the content of one view",
            "content(features2, self.groups))",
            "content(features1, self.groups))",
        ),
        (
            "the sum of the groups, not the mean",
            "sum(by_group.values()) / len(by_group)",
            "sum(by_group.values())",
        ),
        (
            "every group has the values of the first",
            "view.structure[group.code]",
            "view.structure[self.groups[0].code]",
        ),
    ),
    *_rows(
        "methods",
        "methods/essl.py",
        (
            "prediction without its weight",
            'self.prediction_weight * prediction["prediction_loss"]',
            'prediction["prediction_loss"]',
        ),
        (
            "masked rows count",
            "mask = jnp.repeat(mask, len(view.images) // len(mask))",
            "mask = None",
        ),
        (
            "the sum of the codes, not the mean",
            'own["prediction_loss"] / len(self.learned)',
            'own["prediction_loss"]',
        ),
        (
            "copies of another image",
            "jnp.repeat(each, copies)",
            "jnp.tile(each, copies)",
        ),
    ),
    *_rows(
        "methods/test_peers.py",
        "methods/augself.py",
        ("a difference without its weight", "self.weight * mean", "mean"),
        (
            "the sum of the codes, not the mean",
            "sum(by_code.values()) / len(by_code)",
            "sum(by_code.values())",
        ),
        (
            "the difference the other way",
            "losses.squared_error(outputs, difference(code, first, second))",
            "losses.squared_error(outputs, difference(code, second, first))",
        ),
    ),
    *_rows(
        "methods/test_peers.py",
        "methods/equimod.py",
        (
            "told of the other view",
            "self.predict(networks, embedded, view.parameters)",
            "self.predict(networks, embedded, views.first.parameters)",
        ),
        (
            "predicted from a view",
            "networks.encoder(views.plain.images, train=train)",
            "features[0]",
        ),
    ),
    *_rows(
        "methods/test_peers.py",
        "methods/care.py",
        (
            "every image its own draw",
            "jnp.repeat(drawn, self.chunk, axis=0)[:n]",
            "jnp.tile(drawn, (self.chunk, *[1] * (drawn.ndim - 1)))[:n]",
        ),
        (
            "padding is compared",
            "present[:, :, None] & present[:, None, :]",
            "present[:, :, None]",
        ),
    ),
    *_rows(
        "methods/test_peers.py",
        "methods/sie.py",
        (
            "the halves exchanged",
            "invariant, equivariant = jnp.split(",
            "equivariant, invariant = jnp.split(",
        ),
        (
            "no covariance",
            "_VARIANCE, _COVARIANCE = 1.0, 0.04",
            "_VARIANCE, _COVARIANCE = 1.0, 0.0",
        ),
    ),
    *_rows(
        "losses/test_vicreg.py",
        "losses/vicreg.py",
        (
            "the mean with padding",
            "return jnp.where(mask[:, None], centred, 0), jnp.sum(mask)",
            "return centred, jnp.sum(mask)",
        ),
    ),
    *_rows(
        "methods",
        "methods/groups.py",
        (
            "the groups share one block",
            "features[:, self.place * share : (self.place + 1) * share]",
            "features[:, :share]",
        ),
        (
            "the content of the first group",
            "jnp.concatenate(sums, axis=1) if len(sums) > 1 else sums[0]",
            "sums[0]",
        ),
        (
            "the block of a group in the place of the first",
            "start, flat = self.place * share,",
            "start, flat = 0,",
        ),
    ),
    *_rows(
        "methods",
        "config/build.py",
        (
            "the bins of the first code for all",
            "num_bins=bins[place],",
            "num_bins=bins[0],",
        ),
        (
            "the width of the first code for all",
            "target_width=widths[TARGETS[target].width][place],",
            "target_width=widths[TARGETS[target].width][0],",
        ),
    ),
    *_rows(
        "methods",
        "augmentations/stack.py",
        (
            "codes that are one parameter",
            '    ("rot", "ron"): "both turn the image",\n',
            "",
        ),
        (
            "a code twice",
            'if codes.count(code) > 1:\n            raise UsageError(\n                f"{shown} names',
            'if False:\n            raise UsageError(\n                f"{shown} names',
        ),
    ),
    *_rows(
        "evaluation/test_several_codes.py",
        "augmentations/stack.py",
        (
            "what shares a stage stays applied",
            "left_out = {*frame.codes} - kept",
            "left_out = set()",
        ),
        (
            "the last code of a stage alone",
            "{**found, code: made[code]}",
            "made",
        ),
    ),
    *_rows(
        "evaluation/test_several_codes.py",
        "evaluation/crosstalk.py",
        (
            "errors without the other code",
            "together = readings if other == own else",
            "together = readings if True else",
        ),
        (
            "moves from what was drawn",
            "moved = code.distance(plain[own][how],",
            "moved = code.distance(true,",
        ),
    ),
    *_rows(
        "evaluation/test_several_codes.py",
        "evaluation/equivariance.py",
        (
            "the regression of crosstalk sees the other group",
            'own = fits.get(f"block{group.suffix}", fits["full"]) if group else fits["full"]',
            'own = fits["full"]',
        ),
    ),
    *_rows(
        "models",
        "models/batch_norm.py",
        ("biased running variance", "var * (count / max(count - 1, 1))", "var"),
        ("momentum of torch", "MOMENTUM = 0.9", "MOMENTUM = 0.1"),
    ),
    *_rows(
        "models/test_other_encoders.py::test_a_residual_block_is_that_of_numpy",
        "models/resnet.py",
        (
            "a bottleneck's stride in its first",
            "(width, width, 3, stride),",
            "(width, width, 3, 1),",
        ),
        ("no ReLU within a block", "nnx.relu(y) if i else y", "y"),
    ),
    *_rows(
        "models/test_other_encoders.py::test_the_pooling_of_the_stem_is_a_maximum",
        "models/resnet.py",
        ("an average in the stem", "nnx.max_pool(y,", "nnx.avg_pool(y,"),
    ),
    *_rows(
        "models/test_other_encoders.py::test_stems_divide_the_side",
        "models/resnet.py",
        (
            "a stem that is not pooled",
            "if self.pooled:\n            y =",
            "if False:\n            y =",
        ),
    ),
    *_rows(
        "models/test_other_encoders.py::test_recomputation_changes_no_gradient",
        "models/resnet.py",
        (
            "a block that is not recomputed",
            "if self.remat else _run",
            "if False else _run",
        ),
    ),
    *_rows(
        "models/test_other_encoders.py::test_a_transformer_block_is_that_of_numpy",
        "models/vit.py",
        ("the approximate GELU", "approximate=False", "approximate=True"),
        ("another epsilon", "_EPSILON = 1e-6", "_EPSILON = 1e-2"),
        (
            "post-norm attention",
            "self._attention(self.norm1(x))",
            "self.norm1(self._attention(x))",
        ),
    ),
    *_rows(
        "models/test_other_encoders.py::test_other_sides_take_interpolated_positions",
        "models/vit.py",
        ("positions of the nearest patch", '"cubic"', '"nearest"'),
        (
            "positions without the class's",
            "[first, rest.reshape",
            "[0 * first, rest.reshape",
        ),
    ),
    *_rows(
        "models/test_other_encoders.py::test_tokens_are_patches_with_positions",
        "models/vit.py",
        (
            "tokens without positions",
            "return x + self._positions_of(rows).astype(self.dtype)",
            "return x",
        ),
    ),
    *_rows(
        "models/test_other_encoders.py::test_widths_and_heads_are_scaled",
        "models/encoders.py",
        (
            "heads rounded down",
            "self.heads * settings.width_multiplier + 0.5",
            "self.heads * settings.width_multiplier",
        ),
    ),
    *_rows(
        "models/test_models.py::test_parameter_counts_of_torchvision_and_timm",
        "models/encoders.py",
        ("a BN on torchvision's features", "final_norm=False", "final_norm=True"),
    ),
    *_rows(
        "models/test_other_encoders.py::test_stems_divide_the_side",
        "models/encoders.py",
        ("always the small stem", "stem=settings.stem", 'stem="cifar"'),
    ),
    *_rows(
        "models/test_other_encoders.py::test_names_there_and_back",
        "models/torch_weights.py",
        (
            "the reference's name of a shortcut",
            '"shortcut": "downsample"',
            '"shortcut": "shortcut"',
        ),
        ("a classifier is refused", "not name.startswith(ignored)", "True"),
    ),
    *_rows(
        "config/test_checks.py::test_patches_fill_the_images",
        "config/build.py",
        (
            "ESSL's half size is not checked",
            "views.stack.half_size().image_size",
            "views.stack.image_size",
        ),
        ("no side is checked", "    settings.check_side(side)\n", ""),
    ),
    *_rows(
        "profiling/test_profiling.py::test_what_is_only_compiled_is_counted",
        "profiling/__init__.py",
        (
            "parameters with statistics",
            "jax.tree.leaves(params))",
            "jax.tree.leaves((params, batch_stats)))",
        ),
    ),
    *_rows(
        "models/test_convolution.py",
        "models/convolution.py",
        ("a GPU gets what is for a CPU", "default=choices[1]", "default=choices[0]"),
        ("a kernel that is not turned", "over=1)", "over=0)"),
        ("phases of an odd row in turn", "(1,), (2, 0)", "(1,), (0, 2)"),
        (
            "outputs woven by columns",
            "return _woven(grid)",
            "return _woven([*zip(*grid)])",
        ),
        ("a tap too far", "half, half), (half, half)", "half, half), (half + 1, half)"),
        ("16 bits are taken for 32", "x.dtype == kernel.dtype == jnp.float32", "True"),
    ),
    *_rows(
        "runtime/test_terminal.py",
        "runtime/terminal.py",
        ("signs of what is over", "self._doing.remove(entry)", "pass"),
        ("signs beside a bar", " or _bar_is_shown(besides)", ""),
        ("signs as often as ever", "max(QUIET, share * seconds)", "QUIET"),
    ),
    *_rows(
        "models/test_representation.py",
        "models/representation.py",
        (
            "content over channels",
            "return jnp.sum(matrix, axis=1)",
            "return jnp.sum(matrix, axis=2)",
        ),
        (
            "sum instead of mean marginal",
            '{"mean": jnp.mean, ',
            '{"mean": jnp.sum, ',
        ),
        (
            "a shift the other way",
            "jnp.exp(-2j * jnp.pi * turns)",
            "jnp.exp(2j * jnp.pi * turns)",
        ),
        (
            "steering changes the content",
            "    change = change - jnp.mean(change, axis=1, keepdims=True)\n",
            "",
        ),
        (
            "a sum is steered like a mean",
            'if marginal == "sum":',
            'if marginal == "none":',
        ),
    ),
    *_rows(
        "metrics probes",
        "metrics/classification.py",
        (
            "ties count for the label",
            "np.sum(scores >= own, axis=1) - 1",
            "np.sum(scores > own, axis=1)",
        ),
        (
            "confusion transposed",
            "(labels[counted], predicted[counted])",
            "(predicted[counted], labels[counted])",
        ),
    ),
    *_rows(
        "metrics",
        "metrics/equivariance.py",
        (
            "shift the other way",
            "np.roll(original, shift, axis=1)",
            "np.roll(original, -shift, axis=1)",
        ),
        (
            "resamples without replacement",
            "generator.integers(count, size=count, dtype=np.int32)",
            "generator.permutation(count)",
        ),
        (
            "the long way round",
            "(difference + 0.5) % 1 - 0.5 if circular",
            "difference % 1 if circular",
        ),
    ),
    *_rows(
        "probes",
        "probes/knn.py",
        (
            "votes without temperature",
            "(similarity - similarity[:, :1]) / temperature)",
            "(similarity - similarity[:, :1]))",
        ),
        (
            "the last block is short",
            "np.concatenate(votes)[: len(queries)]",
            "np.concatenate(votes)[: len(queries) - 1]",
        ),
    ),
    *_rows(
        "probes",
        "probes/ridge.py",
        ("no intercept", "mean - shift @ kernel", "mean"),
        ("the worst strength", "best = max(scores", "best = min(scores"),
    ),
    *_rows(
        "training/test_optim.py",
        "optim.py",
        (
            "decay outside of the gradient",
            "optax.add_decayed_weights(weight_decay, _mask(decay)),",
            "optax.add_decayed_weights(0 * weight_decay, _mask(decay)),",
        ),
        (
            "no Nesterov",
            "optax.sgd(rate, momentum=momentum, nesterov=nesterov)",
            "optax.sgd(rate, momentum=momentum)",
        ),
        (
            "trust ratios of biases",
            "trust_ratio_mask=True if mask is None else mask",
            "trust_ratio_mask=True",
        ),
        (
            "decay of biases",
            "weight_decay_mask=True if mask is None else mask",
            "weight_decay_mask=True",
        ),
        ("the mask upside down", 'None) == "kernel"', 'None) != "kernel"'),
        ("the root forgotten", "(batch_size / 256) ** 0.5", "batch_size / 256"),
        (
            "Nesterov is read without momentum",
            'if settings.get("momentum") == 0:',
            'if settings.get("momentum") == 1:',
        ),
    ),
    *_rows(
        "training/test_optim.py",
        "training/plan.py",
        (
            "the rate of another batch",
            "settings.learning_rate, settings.scale, config.batch_size",
            'settings.learning_rate, "none", config.batch_size',
        ),
    ),
    *_rows(
        "training/test_optimizers.py",
        "training/decoding.py",
        (
            "decoders by the optimizer of the run",
            '"optimizer.name": "adamw",',
            "",
        ),
        ("decoders by a scaled rate", '"optimizer.scale": "none",', ""),
    ),
    *_rows(
        "losses/test_losses.py",
        "losses/nt_xent.py",
        ("the mean is the sum", '"mean": 0.5', '"mean": 1.0'),
    ),
    *_rows(
        "methods/test_methods.py",
        "methods/base.py",
        (
            "the reduction forgotten",
            "self.temperature, mask, reduction=self.reduction",
            "self.temperature, mask",
        ),
    ),
    *_rows(
        "models/test_models.py",
        "models/heads.py",
        ("no norm without a second layer", "if norm and layers == 3:", "if norm:"),
        (
            "no ReLU after a norm that is left out",
            'nnx.relu(normalized(self.hidden1(content), "norm1"))',
            'normalized(self.hidden1(content), "norm1")',
        ),
    ),
    *_rows(
        "models/test_torch_weights.py",
        "models/torch_weights.py",
        (
            "a shorter projector has a counterpart",
            'if network == "projector" and parts != {*known}:',
            'if network == "projector" and parts != parts:',
        ),
    ),
    *_rows(
        "probes/test_probes.py",
        "probes/knn.py",
        (
            "the last of equal classes",
            "np.arange(classes)[::-1] / (2",
            "np.arange(classes) / (2",
        ),
        (
            "uniform votes with weights",
            'temperature if weights == "similarity" else np.inf',
            "temperature",
        ),
    ),
    *_rows(
        "config/test_config_files.py",
        "config/loading.py",
        (
            "recipes have no names",
            'sorted(root.glob("[!_]*/[!_]*.py"))',
            "[]",
        ),
    ),
    *_rows(
        "training/test_optim.py test_golden.py",
        "optim.py",
        (
            "the cosine an epoch ahead",
            "(epoch - warmup_epochs) / max(epochs",
            "(epoch - warmup_epochs + 1) / max(epochs",
        ),
        (
            "the schedule an epoch ahead",
            "step // steps_per_epoch,",
            "step // steps_per_epoch + 1,",
        ),
        ("no floor", "_WARMUP_FLOOR = 1e-3", "_WARMUP_FLOOR = 0.0"),
        ("weight decay forgotten", "eps=eps, weight_decay=weight_decay", "eps=eps"),
        (
            "an extension begins at 0",
            "before(jnp.asarray(begin - 1",
            "before(jnp.asarray(0",
        ),
        ("a second warm-up", "epochs - first, 0)", "epochs - first, warmup_epochs)"),
        (
            "an extension changes the past",
            "jnp.where(step < begin, ",
            "jnp.where(False, ",
        ),
    ),
    *_rows(
        "training/test_nonfinite.py",
        "training/train_step.py",
        (
            "updates that overflow are applied",
            "jnp.isfinite(loss) & jnp.isfinite(norm) & state.sound",
            "jnp.isfinite(loss) & state.sound",
        ),
        (
            "a broken run goes on",
            "& jnp.isfinite(norm) & state.sound",
            "& jnp.isfinite(norm)",
        ),
    ),
    *_rows(
        "data/test_data.py training/test_batches.py",
        "data/order.py",
        (
            "every epoch in the same order",
            "np.array([seed, epoch], np.uint64)",
            "np.array([seed, 0], np.uint64)",
        ),
        (
            "the last test image is lost",
            "np.minimum(positions, self.num_test - 1)",
            "np.minimum(positions, self.num_test - 2)",
        ),
    ),
    *_rows(
        "training/test_train.py",
        "training/loop.py",
        (
            "the end is not saved",
            "within_an_epoch or last or self.plan.ends_epochs",
            "within_an_epoch or self.plan.ends_epochs",
        ),
    ),
    *_rows(
        "runs/test_checkpoints.py",
        "runs/checkpoints.py",
        (
            "the worst is the best",
            "        return max(\n            known,\n",
            "        return min(\n            known,\n",
        ),
        (
            "the best is deleted",
            "{*steps[-self._keep :], best and best.step}",
            "{*steps[-self._keep :]}",
        ),
        ("the same step is saved twice", "newest >= step:", "newest > step:"),
    ),
    *_rows(
        "runs/test_damage.py",
        "runs/seal.py",
        (
            "hashes are not compared",
            "    if found != entry:\n",
            "    if found is None:\n",
        ),
        (
            "a changed seal is taken",
            "intact = text == _seal_text(files) and all(",
            "intact = all(",
        ),
    ),
    *_rows(
        "runs/test_checkpoints.py",
        "runs/storage.py",
        (
            "what is read back is not compared",
            "if not same or old.tobytes() != new.tobytes():",
            "if not same:",
        ),
        (
            "what Orbax reports is ignored",
            "        self.raise_reported()\n        while",
            "        while",
        ),
    ),
    *_rows(
        "runs/test_workdir.py training/test_train.py",
        "runs/workdir.py",
        (
            "another run is overwritten",
            "    elif others or epochs != before:",
            "    elif False:",
        ),
        ("two may train at once", "fcntl.lockf(file, kind | fcntl.LOCK_NB)", "pass"),
    ),
    *_rows(
        "training/test_extension.py training/test_initial.py",
        "runs/workdir.py",
        (
            "an extension is forgotten",
            "extensions=(*history.extensions, longer)",
            "extensions=(longer,)",
        ),
        (
            "epochs change unasked",
            "elif others or epochs != before:",
            "elif others:",
        ),
        (
            "other first weights are taken",
            "    others += _other_source(history, source)\n",
            "",
        ),
    ),
    *_rows(
        "training/test_initial.py",
        "training/initial.py",
        (
            "heads are drawn",
            "params=state.params | self.params,",
            'params=state.params | {"encoder": self.params["encoder"]},',
        ),
        (
            "statistics are left out",
            "batch_stats=state.batch_stats | self.batch_stats,",
            "batch_stats=state.batch_stats,",
        ),
    ),
    *_rows(
        "runs/test_torch_file.py",
        "runs/torch_file.py",
        (
            "a pickle calls what it likes",
            '        raise UsageError(\n            f"names {module}',
            '        return super().find_class(module, name)\n        raise UsageError(\n            f"names {module}',
        ),
        (
            "a tensor beyond its values",
            "(count and last >= storage.size)",
            "False",
        ),
        (
            "a tensor before its values",
            "min(offset, *shape, *strides, 0) >= 0",
            "True",
        ),
        ("short values", "len(content) < count * dtype.itemsize", "False"),
        ("bfloat16 as numbers", 'if kind.name == "BFloat16Storage":', "if False:"),
    ),
    *_rows(
        "runs/test_weights_file.py",
        "runs/weights_file.py",
        ("prefixes are kept", "k.removeprefix(before)", "k"),
        ("arrays of another shape", "if here != there:", "if False:"),
        ("an encoder that does not fit", 'if name == "encoder":', "if False:"),
    ),
    *_rows(
        "evaluation/test_export.py",
        "runs/weights_file.py",
        ("paths in a file of weights", '    "dataset.path",\n', ""),
    ),
    *_rows(
        "evaluation/test_export.py",
        "evaluation/export.py",
        ("what differs is kept", "if not difference <= most:", "if False:"),
        ("earlier files stay", "for name in {*_NAMES} - {*new}:", "for name in ():"),
    ),
    *_rows(
        "evaluation/test_export.py",
        "runs/onnx_file.py",
        ("a corner for the center", "(shape[1] - side) // 2", "0"),
    ),
    *_rows(
        "evaluation/test_imported.py",
        "training/imported.py",
        (
            "other weights by the same name",
            "if history.origin.weights != weights.origin.weights:",
            "if False:",
        ),
    ),
    *_rows(
        "runtime/test_provenance.py",
        "runtime/provenance.py",
        ("changed files are clean", 'line.startswith("# ")', "line"),
        ("secrets are kept", 'argument = f"{found[1]}=..."', "pass"),
    ),
    *_rows(
        "end_to_end/test_identity.py runs/test_workdir.py",
        "runs/workdir.py",
        (
            "other images are taken",
            "if not changed and not same_images(old.identity, facts.identity):",
            "if False:",
        ),
    ),
    *_rows(
        "loggers",
        "loggers/jsonl.py",
        ("later rows stay", "<= resume_step)", "<= resume_step + 1)"),
        (
            "NaN is written",
            "return float(value) if math.isfinite(value) else None",
            "return float(value)",
        ),
    ),
    *_rows(
        "loggers",
        "loggers/wandb_run.py",
        (
            "the key is printed",
            "api_key: str | None = dataclasses.field(default=None, repr=False)",
            "api_key: str | None = None",
        ),
        (
            "the file goes first",
            'os.environ.get(name, "").strip() or entries.get(name)',
            'entries.get(name) or os.environ.get(name, "").strip()',
        ),
    ),
    *_rows(
        "runtime/test_files.py",
        "runtime/files.py",
        (
            "half a file is left",
            "        os.replace(partial, path)\n",
            "        shutil.copy(partial, path)\n",
        ),
        (
            "what others write is removed",
            "    except PermissionError:  # another user's\n        pass\n    return False",
            "    except PermissionError:  # another user's\n        pass\n    return True",
        ),
    ),
    *_rows(
        "end_to_end/test_safety.py",
        "evaluation/page.py",
        ("names are markup in a table", "<td>{escape(cell)}</td>", "<td>{cell}</td>"),
        (
            "names are markup in a title",
            "<h1>{escape(title)}</h1>",
            "<h1>{title}</h1>",
        ),
        (
            "pictures by a link",
            "if path.is_symlink() or not path.is_file():",
            "if not path.is_file():",
        ),
    ),
    *_rows(
        "figures/test_knob_figure.py",
        "figures/knob.py",
        ("images and frames of a sheet change places", ".swapaxes(1, 2)[:", "[:"),
        (
            "frames share blocks of JPEG",
            "-(-shown_side(side) // _BLOCK) * _BLOCK",
            "shown_side(side)",
        ),
        ("a sheet of any size", "if len(content) <= _MOST_BYTES:", "if content:"),
        (
            "the other dials at their first steps",
            "np.full(shape[turned], dial.plain)",
            "np.full(shape[turned], 0)",
        ),
        (
            "the first dial's step changes first",
            "np.ravel_multi_index(tuple(steps), shape)",
            "np.ravel_multi_index(tuple(steps), shape, order='F')",
        ),
        ("numbers of any shape", "if found.shape != shape:", "if False:"),
        (
            "dials of one code",
            "if len({dial.code for dial in dials}) != len(dials):",
            "if False:",
        ),
    ),
    *_rows(
        "evaluation/test_knob_page.py",
        "evaluation/knob.py",
        ("the dial turns clockwise", "Math.atan2(-right, ", "Math.atan2(right, "),
        ("the hand turns clockwise", "rotate(${-360", "rotate(${360"),
        ("a circle has ends", "dial ? (place + last + 1)", "false ? (place)"),
        (
            "the slider is not by parameter",
            "turn.places[turn.slider.value]",
            "+turn.slider.value",
        ),
        (
            "combinations in another order",
            "found * turns[number].places.length + step",
            "found + step * turns[0].places.length",
        ),
        ("both dials have the first bars", "charts.shift()", "charts[0]"),
        (
            "only the first dial is heard",
            "for (const turn of turns) {",
            "for (const turn of turns.slice(0, 1)) {",
        ),
        ("bars of the first image", "marginals[name][image]", "marginals[name][0]"),
        ("data end their element", 'text.replace("<", ', 'text.replace("\\0", '),
    ),
    *_rows(
        "evaluation/test_knob_page.py",
        "evaluation/html_report.py",
        ("damaged knobs are shown", "figures.check_knob(", "("),
    ),
    *_rows(
        "data/test_sources.py",
        "data/source.py",
        (
            "most images are held out",
            "numbers < share * 2**56",
            "numbers > share * 2**56",
        ),
        ("a split without images", "selected[np.argmin(numbers)] = True\n", "pass\n"),
    ),
    *_rows(
        "data/test_sources.py",
        "data/found.py",
        ("held-out images are trained on", "np.flatnonzero(~held)", "train"),
    ),
    *_rows(
        "evaluation/test_yardsticks.py",
        "evaluation/yardsticks.py",
        ("yardsticks of other encoders", "name, parts, about],", "name, about],"),
        ("of another seed", "np.uint32(run.config.seed)", "np.uint32(0)"),
    ),
    *_rows(
        "evaluation/test_external.py",
        "runs/external.py",
        (
            "channels of a file mixed up",
            "transpose(0, 3, 1, 2)",
            "transpose(0, 3, 2, 1)",
        ),
        ("padding of a file kept", "[: len(rows)])", ")"),
        ("any features of a function", "not np.isfinite(found).all()", "False"),
        ("weights beside a file ignored", "in sorted(others) if", "in () if"),
        (
            "a module by its name only",
            "_hash(name.encode(), content)",
            "_hash(name.encode())",
        ),
    ),
    *_rows(
        "evaluation/test_external.py",
        "runs/frozen_encoder.py",
        (
            "an encoder given centered views",
            "jnp.clip(views + 0.5, 0, 1)",
            "views",
        ),
    ),
    *_rows(
        "evaluation/test_external.py",
        "runs/trained_run.py",
        (
            "views of an encoder forgotten",
            "short_hash([external.digest, settings])",
            "external.digest",
        ),
    ),
    *_rows(
        "evaluation/test_external.py",
        "cli.py",
        ("results of a run replaced", '(directory / "config.json").exists()', "False"),
    ),
    *_rows(
        "sweeps/test_sweeps.py",
        "sweeps/tables.py",
        (
            "yardsticks of other rows",
            "setdefault((name, *cells), [])",
            "setdefault((name, *cells[:1]), [])",
        ),
    ),
    *_rows(
        "figures/test_generated.py",
        "metrics/knobs.py",
        ("the worst knob", "return min(known", "return max(known"),
    ),
    *_rows(
        "figures/test_generated.py",
        "figures/generated.py",
        (
            "an interval is its mean",
            "between(x, values[1]",
            "between(x, values[0]",
        ),
        ("axes of their own", 'sharey="col"', "sharey=False"),
        (
            "a legend for every panel",
            "for number in {0, own}",
            "for number in range(len(rows))",
        ),
        (
            "lines in the order given",
            "np.argsort(line.panel.parameters)",
            "np.arange(len(line.panel.parameters))",
        ),
    ),
    *_rows(
        "sweeps/test_sweeps.py::test_generation_is_measured_by_its_best_knob"
        " sweeps/test_sweeps.py::test_what_generation_has_not_is_left_out",
        "sweeps/trial.py",
        ("wrong levels are right ones", "= 1 - error", "= error"),
        (
            "the first knob",
            "predictions.get(best, {})",
            "predictions.get(next(iter(predictions)), {})",
        ),
    ),
    *_rows(
        "sweeps/test_sweeps.py::test_several_codes_have_measures_of_their_own"
        " sweeps/test_sweeps.py::test_one_code_has_the_measures_of_the_row",
        "sweeps/trial.py",
        ("the least crosstalk", "max(others) / own", "min(others) / own"),
        ("codes share a measure", 'f"{k}@{code}" if several', "k if several"),
        (
            "crosstalk of another reading",
            'crosstalk.get("structure") or crosstalk.get("regression")',
            'crosstalk.get("regression")',
        ),
    ),
    *_rows(
        "sweeps/test_sweeps.py::test_columns_by_code",
        "sweeps/tables.py",
        ("codes before all", "if code else -1,", "if code else len(codes),"),
    ),
    *_rows(
        "sweeps/test_sweeps.py::test_refused",
        "config/loading.py",
        (
            "codes that cannot be measured",
            'lookup(dict.fromkeys(LEARNABLE), code, f"CODES: {row}")',
            "pass",
        ),
    ),
    *_rows(
        "evaluation/test_evaluate.py",
        "evaluation/headlines.py",
        (
            "the worst yardstick first",
            "reverse=self.unit is None",
            "reverse=self.unit is not None",
        ),
        ("wrong levels are right ones", "1 - x if levels", "x if levels"),
        (
            "the structure beside yardsticks of features",
            'if k == "chance"}',
            'if k != "chance"}',
        ),
    ),
    *_rows(
        "evaluation/test_evaluate.py",
        "evaluation/compare.py",
        (
            "differences of the wrong sign",
            'f"{float(after) - float(before):+.{digits}f}"',
            'f"{float(before) - float(after):+.{digits}f}"',
        ),
        (
            "other images are not told",
            "or not same_images(run.facts.identity, first.identity)",
            "",
        ),
    ),
    *_rows(
        "evaluation/test_evaluation_figures.py",
        "figures/structure.py",
        (
            "a color scale for each panel",
            "mesh = _draw_shares(panel, each, top)",
            "mesh = _draw_shares(panel, each, each.top)",
        ),
        (
            "shifts the other way round",
            'axes.set_theta_zero_location("N")',
            'axes.set_theta_zero_location("S")',
        ),
    ),
    *_rows(
        "evaluation/test_evaluate.py",
        "evaluation/store.py",
        (
            "infinity in a file",
            "if isinstance(value, float) and not math.isfinite(value):",
            "if False:",
        ),
        (
            "old pictures stay",
            'if gone := sorted(set(old["pictures"]) - set(content["pictures"])):',
            "if gone := []:",
        ),
    ),
    *_rows(
        "data/test_data.py",
        "data/cache.py",
        (
            "a cache of other files",
            "source.class_names, source.identity]",
            "source.class_names]",
        ),
        (
            "a damaged cache is taken",
            "if found != expected or channels not in ((1,), (3,)):",
            "if False:",
        ),
    ),
    *_rows(
        "sweeps",
        "sweeps/tables.py",
        (
            "deviation of the population",
            "statistics.stdev(values) if",
            "statistics.pstdev(values) if",
        ),
        (
            "shares are no per cent",
            "scale, digits = (100, 1) if self.percent",
            "scale, digits = (1, 1) if self.percent",
        ),
    ),
    *_rows(
        "sweeps/test_slurm.py::test_two_sweeps_submit_once",
        "sweeps/slurm.py",
        (
            "jobs of others are not seen",
            "            if job in queue:\n",
            "            if False:\n",
        ),
    ),
    *_rows(
        "sweeps/test_slurm.py::test_what_is_submitted",
        "sweeps/slurm.py",
        ("jobs are not requeued", '{**free, "requeue": True}', "free"),
        ("the sweep does not know its jobs", 'trial.write(job=job, error="")', "pass"),
    ),
    *_rows(
        "sweeps/test_slurm.py::test_the_error_of_a_run_is_told",
        "sweeps/slurm.py",
        (
            "jobs are lost at the first look",
            "        return before\n",
            "        return True\n",
        ),
        (
            "the error of a run is overwritten",
            '    if trial.record().get("error"):\n',
            "    if False:\n",
        ),
    ),
    *_rows(
        "sweeps/test_slurm.py::test_minutes_of_a_time_limit",
        "sweeps/slurm.py",
        ("time limits are rounded down", "-(-seconds // 60)", "seconds // 60"),
    ),
    *_rows(
        "sweeps/test_slurm.py::test_a_job_goes_back_to_the_queue",
        "sweeps/job.py",
        (
            "a preempted job ends",
            "        if stop.signal == signal.SIGTERM:\n",
            "        if False:\n",
        ),
        (
            "a job ends at its time limit",
            "        if stop.signal == ahead:\n",
            "        if False:\n",
        ),
    ),
    *_rows(
        "end_to_end/test_bad_input.py end_to_end/test_cli.py",
        "cli.py",
        (
            "fields without effect are taken",
            "    for name, reason in unused.items():\n        raise UsageError(",
            "    for name, reason in ():\n        raise UsageError(",
        ),
        (
            "flags of absl are taken",
            "        if _OF_ABSL.match(argument):\n",
            "        if False:\n",
        ),
    ),
    *_rows(
        "metrics/test_images.py",
        "metrics/images.py",
        (
            "pixels beyond the range",
            "(jnp.clip(x + 0.5, 0, 1) for x in (true, made))",
            "(x + 0.5 for x in (true, made))",
        ),
        ("a window of another size", "_WINDOW = 11", "_WINDOW = 9"),
    ),
    *_rows(
        "methods/test_reconstruction.py",
        "methods/reconstruction.py",
        (
            "one view in training",
            "[views.first, views.second] if train",
            "[views.second] if train",
        ),
        (
            "both views in evaluation",
            "if train else [views.second]",
            "if train else [views.first, views.second]",
        ),
        (
            "an encoder that can be trained",
            "        _freeze(encoder)\n",
            "",
        ),
        (
            "padding counts",
            "losses.masked_mean(error, mask)",
            "losses.masked_mean(error, None)",
        ),
    ),
    *_rows(
        "training/test_decoding.py",
        "training/decoding.py",
        ("decoders of other weights", "if history.origin != origin:", "if False:"),
        (
            "somebody's files are removed",
            "    if not _are_decoders(directory):\n",
            "    if False:\n",
        ),
        ("a link is removed", "    if directory.is_symlink():\n", "    if False:\n"),
        (
            "an encoder of its own",
            'state.batch_stats | {"encoder": own}',
            "state.batch_stats",
        ),
        (
            "damaged decoders are taken",
            "        seal.verify(checkpoint)\n        return True",
            "        return True",
        ),
    ),
    *_rows(
        "evaluation/test_control.py",
        "evaluation/control.py",
        (
            "bins shifted by the parameter itself",
            "group.num_bins * (wanted[code.name] - code.identity())",
            "group.num_bins * wanted[code.name]",
        ),
        (
            "the oracle has not seen it",
            "ORACLE: real,",
            "ORACLE: self.start,",
        ),
        (
            "corners count",
            'if not {code.record.stage for code in codes} & {"rot", "ron"}:',
            "if True:",
        ),
        (
            "only the last code is steered",
            "_matrix(group, features),\n                    jnp.broadcast_to",
            "_matrix(group, self.start),\n                    jnp.broadcast_to",
        ),
        (
            "maps are applied to the image as it is",
            "np.split(np.float32(fit.predict(features)), len(moved), axis=1)",
            "np.split(np.float32(fit.predict(start)), len(moved), axis=1)",
        ),
        (
            "maps that know the other codes at rest only",
            "views_at(stack, train, {**others, name: value})",
            "views_at(stack, train, {name: value})",
        ),
    ),
    *_rows(
        "evaluation/test_evaluate.py::test_results_of_generation",
        "evaluation/generation.py",
        (
            "a real image has an error",
            '"mse": float(outcome.mse.mean()),',
            '"mse": 1 - float(outcome.mse.mean()),',
        ),
    ),
    *_rows(
        "training/test_health.py",
        "training/health.py",
        ("a collapse goes unsaid", "COLLAPSED = 0.01", "COLLAPSED = 0.0"),
        ("a rank that falls goes unsaid", "few = fallen or ", "few = "),
        ("a rank that stays low goes unsaid", "self._low + 1 if share", "0 if share"),
        ("a first low rank is a collapse", ">= LASTING", ">= 1"),
        (
            "a collapse is told twice",
            'if few and "collapsed" not in self._said:',
            "if few:",
        ),
    ),
    *_rows(
        "metrics/test_monitors.py",
        "metrics/monitors.py",
        ("shares of squares", "shares = values / max(", "shares = values**2 / max("),
        (
            "the spectrum of deviations",
            "places @ np.log(np.square(fitted))",
            "places @ np.log(fitted)",
        ),
        ("rounding is fitted", "deviations > rounding * largest", "deviations > 0"),
        (
            "the covariance around zero",
            "features - features.mean(",
            "features - 0 * features.mean(",
        ),
        ("lengths align", "_directions(first) - _directions(second)", "first - second"),
        (
            "a feature is its own pair",
            "(total - count) / (count * (count - 1))",
            "total / count**2",
        ),
        (
            "views are images",
            "axes / np.sqrt(np.maximum(variances, 0) + _RIDGE)",
            "axes / np.sqrt(0 * variances + 1)",
        ),
        ("no ridge", "_RIDGE = 1e-4", "_RIDGE = 1e-12"),
    ),
    *_rows(
        "training/test_monitors.py",
        "training/compiled.py",
        (
            "draws of the first batch for all",
            "places = batch * size + jnp",
            "places = jnp",
        ),
        ("a padded image is measured", "axis=1)[:, : plan.monitored]", "axis=1)"),
        (
            "the image as it is, augmented",
            "jnp.where(view < 0, plain, augmented)",
            "augmented",
        ),
    ),
    *_rows(
        "training/test_monitors.py",
        "training/monitors.py",
        (
            "all views are one",
            "jax.random.fold_in(jax.random.key(_SEED), view)",
            "jax.random.key(_SEED)",
        ),
    ),
    *_rows(
        "metrics/test_actions.py",
        "metrics/actions.py",
        (
            "ties count as hits",
            "np.clip(most - self.better, 0, self.tied) / self.tied",
            "(self.better < most).astype(float)",
        ),
        (
            "a mirror image is a rotation",
            "np.sign(np.linalg.det(left) * np.linalg.det(right)) or 1.0",
            "1.0",
        ),
        ("the inverse of a map", "else base @ matrix.T", "else base @ matrix"),
        ("maps in the other order", "both - first @ second", "both - second @ first"),
        ("one image of a pair counts twice", "way + way[other]", "2 * way"),
        ("the whole angle", "np.sin(np.pi * apart)", "np.sin(2 * np.pi * apart)"),
    ),
    *_rows(
        "evaluation/test_measures.py",
        "evaluation/local.py",
        ("bins shifted onwards", "back = -t *", "back = t *"),
        (
            "brightness by a tenth",
            "1 + percent / 100)\n    return photo",
            "1 + percent / 10)\n    return photo",
        ),
    ),
    *_rows(
        "evaluation/test_measures.py",
        "evaluation/actions.py",
        (
            "features shifted back",
            "by = group.num_bins * (value",
            "by = -group.num_bins * (value",
        ),
        (
            "maps of other views",
            "for value in values[first : first + together]",
            "for value in values[::-1][first : first + together]",
        ),
    ),
    *_rows(
        "evaluation/test_measures.py",
        "evaluation/codes.py",
        (
            "differences are sums",
            "second, np.float64) - np.asarray(first",
            "second, np.float64) + np.asarray(first",
        ),
    ),
    *_rows(
        "probes",
        "probes/mlp.py",
        ("the outputs lack their mean", " + self.mean[None, :]", ""),
    ),
]


def _copy(checkout: pathlib.Path, place: pathlib.Path) -> None:
    for path in checkout.iterdir():
        if path.name in _COPIED:
            shutil.copytree(path, place / path.name)
        elif path.is_file():
            shutil.copy(path, place)
    programs = checkout / ".cache"
    programs.mkdir(exist_ok=True)
    (place / programs.name).symlink_to(programs)


def _passes(place: pathlib.Path, tests: Sequence[str]) -> bool:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "2",
        "-p",
        "no:cacheprovider",
    ]
    command += [f"tests/{each}" for each in tests]
    done = subprocess.run(command, cwd=place, capture_output=True, check=False)
    # With -x and several workers, a failure is an interruption.
    if done.returncode > 2:
        raise SystemExit(done.stdout.decode() + done.stderr.decode())
    return done.returncode == 0


def check(
    checkout: pathlib.Path, mutations: Sequence[Mutation], *, passing: bool
) -> list[Mutation]:
    """Returns the mutations that the tests of `checkout` do not notice."""
    missed = []
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        _copy(checkout, place)
        for mutation in mutations:
            path = place / "duet_jax" / mutation.file
            text = path.read_text()
            if text.count(mutation.old) != 1:
                raise SystemExit(f"{mutation.file} has not once: {mutation.old!r}")
        for tests in dict.fromkeys(each.tests for each in mutations):
            if not passing and not _passes(place, tests):
                raise SystemExit(f"{', '.join(tests)} fail as they are")
        for mutation in mutations:
            path = place / "duet_jax" / mutation.file
            text, start = path.read_text(), time.monotonic()
            path.write_text(text.replace(mutation.old, mutation.new))
            noticed = not _passes(place, mutation.tests)
            path.write_text(text)
            seconds = time.monotonic() - start
            word = "noticed" if noticed else "MISSED"
            line = f"{word:8}{seconds:5.0f} s  {mutation.file}: {mutation.name}"
            print(line, flush=True)
            if not noticed:
                missed.append(mutation)
    return missed


def main() -> int:
    """Prints a line for each mutation, and a sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=pathlib.Path, default=ROOT)
    parser.add_argument("--only", default="*", help="pattern of names or files")
    parser.add_argument(
        "--passing",
        action="store_true",
        help="the tests are known to pass as they are, and are not run so before",
    )
    options = parser.parse_args()
    chosen = [
        each
        for each in MUTATIONS
        if fnmatch.fnmatch(each.name, options.only)
        or fnmatch.fnmatch(each.file, options.only)
    ]
    missed = check(options.checkout, chosen, passing=options.passing)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} mutations are noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
