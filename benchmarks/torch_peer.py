"""The training step of DUET and SimCLR in plain PyTorch, views by kornia.

The baseline for the speed of `duet_jax`, written from the definitions of the methods
and optimized as is usual in PyTorch: channels-last memory, bfloat16 by autocast, fused
AdamW, data on the device, no synchronization with the host. Modules are named like the
keys of `duet_jax.models.torch_weights`, so that weights can be transferred.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import torch
from kornia import augmentation as kornia
from torch import nn
from torch.nn import functional

from duet_jax.augmentations import Options, Stack
from duet_jax.errors import UsageError
from duet_jax.methods import Method
from duet_jax.methods.base import Structured

Metrics = dict[str, torch.Tensor]


class BasicBlock(nn.Module):
    """conv BN ReLU, conv BN, add, ReLU; a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [batch, inputs, side, side] to the block's output."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Encoder(nn.Module):
    """Residual network: stem, three stages, mean over the image, BN."""

    def __init__(self, channels: int, widths: tuple[int, ...], blocks: tuple[int, ...]):
        super().__init__()
        stem, *stages = widths
        self.conv1 = _conv(channels, stem, 3, 1)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, stages[0], 1, blocks[0])
        self.layer2 = _stage(stages[0], stages[1], 2, blocks[1])
        self.layer3 = _stage(stages[1], stages[2], 2, blocks[2])
        self.final_bn = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(stages[2]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps [batch, channels, side, side] to float32 [batch, features]."""
        y = functional.relu(self.bn1(self.conv1(images)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.final_bn(y.mean((2, 3), dtype=torch.float32))


class Projector(nn.Sequential):
    """Linear BN ReLU, Linear BN ReLU, Linear BN; the last BN in float32."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__(
            *(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, outputs), nn.BatchNorm1d(outputs)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [batch, inputs] to float32 [batch, outputs]."""
        *layers, last = self
        for layer in layers:
            x = layer(x)
        return last(x.float())


def _conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _stage(inputs: int, outputs: int, stride: int, depth: int) -> nn.Sequential:
    rest = (BasicBlock(outputs, outputs, 1) for _ in range(depth - 1))
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)


Weights = Mapping[str, Mapping[str, np.ndarray]]


def build_networks(weights: Weights) -> nn.ModuleDict:
    """Returns networks with these weights and of the same sizes.

    Args:
      weights: parameters and running statistics by torch name, of "encoder",
        "projector" and "online_probe".
    """
    encoder, projector = weights["encoder"], weights["projector"]
    layers = ("conv1", *(f"layer{n}.0.conv1" for n in (1, 2, 3)))
    networks = nn.ModuleDict(
        {
            "encoder": Encoder(
                channels=encoder["conv1.weight"].shape[1],
                widths=tuple(len(encoder[f"{name}.weight"]) for name in layers),
                blocks=tuple(_depth(encoder, f"layer{n}.") for n in (1, 2, 3)),
            ),
            "projector": Projector(
                *projector["0.weight"].shape[::-1], len(projector["6.weight"])
            ),
            "online_probe": nn.Linear(*weights["online_probe"]["weight"].shape[::-1]),
        }
    )
    for name, network in networks.items():
        arrays = {k: torch.from_numpy(a.copy()) for k, a in weights[name].items()}
        loaded = network.load_state_dict(arrays, strict=False)
        # Only torch has counters of updates.
        missing = {k for k in loaded.missing_keys if "num_batches_tracked" not in k}
        if missing or loaded.unexpected_keys:
            raise RuntimeError(f"{name}: {missing} and {loaded.unexpected_keys}")
    return networks


def _depth(encoder: Mapping[str, np.ndarray], stage: str) -> int:
    return len({k.split(".")[1] for k in encoder if k.startswith(stage)})


class Stage(NamedTuple):
    """kornia's module for an augmentation, and the function for its structure value."""

    make: Any
    structure: Any


def _resized_crop(options: Options, side: int, device: torch.device) -> nn.Module:
    return kornia.RandomResizedCrop(
        (side, side),
        # kornia draws on the device of this tensor.
        scale=torch.tensor(options.crop_area, device=device),
        ratio=options.crop_ratio,
        align_corners=True,
        # "slice" crops images one by one; "resample" processes the whole batch.
        cropping_mode="resample",
    )


def _rotation(options: Options, side: int, device: torch.device) -> nn.Module:
    del side, device
    return kornia.RandomRotation(options.rotation_degrees, align_corners=True, p=1.0)


def _crop_structure(params: Metrics, side: int) -> torch.Tensor:
    height = params["src"][:, 2, 1] - params["src"][:, 0, 1] + 1
    return (side - height) / (side - 1)


STAGES = {
    "sca": Stage(_resized_crop, _crop_structure),
    "rot": Stage(_rotation, lambda params, side: (params["degrees"] + 180) / 360),
}


class ViewMaker(nn.Module):
    """Makes one view of a batch, with the structure values of the drawn parameters."""

    def __init__(self, stack: Stack, learned: str | None, device: torch.device):
        """Checks the codes of `stack`; `learned` is None without a structure."""
        super().__init__()
        other = [code for code in stack.codes if code not in STAGES]
        if other or "sca" not in stack.codes:
            raise UsageError(
                f"config.augmentation.stack={' '.join(stack.codes)!r} cannot be "
                "compared; use 'sca rot' or 'sca', which the peer has as well."
            )
        self.codes, self.learned = stack.codes, learned
        self.stages = nn.ModuleList(
            STAGES[code].make(stack.options, stack.image_size, device)
            for code in stack.codes
        ).to(device)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Augments uint8 images.

        Args:
          images: [batch, channels, side, side].

        Returns:
          Float32 [batch, channels, image_size, image_size] in [-0.5, 0.5], channels
          last in memory; structure values [batch].
        """
        x, structure = images.float() / 255, None
        for code, stage in zip(self.codes, self.stages, strict=True):
            params = stage.forward_parameters(x.shape)
            if code == self.learned:
                structure = STAGES[code].structure(params, x.shape[-1])
            x = stage(x, params=params)
        return (x - 0.5).contiguous(memory_format=torch.channels_last), structure


def nt_xent(
    first: torch.Tensor, second: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """NT-Xent with both directions added, and the rank of every positive.

    Args:
      first: embeddings of view 1, [batch, dimensions].
      second: of view 2.
      temperature: divides the cosines.

    Returns:
      The loss; ranks, [2 * batch].
    """
    unit = functional.normalize(torch.cat([first, second]), eps=1e-6)
    own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    logits = (unit @ unit.T / temperature).masked_fill(own, -torch.inf)
    positive = torch.arange(len(unit), device=unit.device).roll(len(first))
    loss = 2 * functional.cross_entropy(logits, positive)
    return loss, _rank(logits.detach(), positive)


def _rank(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    own = logits.gather(1, chosen[:, None])
    return (logits >= own).sum(1) - 1


def _share_below(rank: torch.Tensor, k: int) -> torch.Tensor:
    return (rank < k).float().mean()


def jensen_shannon(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Divergence in nats of softmax(`logits`) from `targets`, both [batch, bins]."""
    log_p = functional.log_softmax(logits, dim=1)
    log_q = targets.clamp_min(torch.finfo(targets.dtype).tiny).log()
    log_mixture = torch.logaddexp(log_p, log_q) - math.log(2)
    terms = log_p.exp() * (log_p - log_mixture) + targets * (log_q - log_mixture)
    return terms.sum(1) / 2


def target(values: torch.Tensor, bins: int, kind: str, width: float) -> torch.Tensor:
    """Target distributions around structure values [batch], [batch, bins].

    Args:
      values: in [0, 1].
      bins: of the structure.
      kind: "von_mises" or "gaussian".
      width: concentration of the one, standard deviation of the other.
    """
    grid = torch.linspace(0, 1, 100 * bins, device=values.device)
    distance = grid - values[:, None]
    if kind == "von_mises":
        log_density = width * torch.cos(2 * torch.pi * distance)
    else:
        log_density = -((distance / width) ** 2) / 2
    return log_density.softmax(1).unflatten(1, (bins, 100)).sum(2)


class Objective(nn.Module):
    """The total loss of a method on two views."""

    def __init__(self, networks: nn.ModuleDict, method: Method, *, bfloat16: bool):
        """Takes the settings of `method`; bfloat16 is for encoder and projector."""
        super().__init__()
        self.networks, self.bfloat16 = networks, bfloat16
        self.temperature = method.two_views.temperature
        self.bins = None
        if isinstance(method, Structured):
            (group,) = method.groups  # as in the reference
            self.bins, self.weight = group.num_bins, method.structure_weight
            self.target = group.target, group.target_width

    def forward(
        self, first: tuple, second: tuple, labels: torch.Tensor
    ) -> tuple[torch.Tensor, Metrics]:
        """Returns the loss and the metrics of the project.

        Args:
          first: view 1, images [batch, channels, side, side] and structure values
            [batch], or None.
          second: view 2.
          labels: int64 [batch].
        """
        views, networks = (first[0], second[0]), self.networks
        device = labels.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bfloat16):
            # One forward pass per view: its batch statistics are its own.
            features = [networks["encoder"](images) for images in views]
            embeddings = [networks["projector"](self._content(x)) for x in features]
        contrast, rank = nt_xent(*embeddings, self.temperature)
        logits = networks["online_probe"](features[0].detach())
        online = functional.cross_entropy(logits, labels)
        total, online_rank = contrast + online, _rank(logits.detach(), labels)
        metrics = {"nt_xent": contrast, "online_loss": online}
        for k in (1, 5):
            metrics[f"retrieval_top{k}"] = _share_below(rank, k)
            metrics[f"online_top{k}"] = _share_below(online_rank, k)
        if self.bins:
            structure = self._structure_loss(torch.cat(features), first[1], second[1])
            metrics["structure_loss"] = structure
            total = total + self.weight * structure
        return total, {k: v.detach() for k, v in {**metrics, "loss": total}.items()}

    def _content(self, features: torch.Tensor) -> torch.Tensor:
        return features.unflatten(1, (self.bins, -1)).sum(1) if self.bins else features

    def _structure_loss(
        self, features: torch.Tensor, *values: torch.Tensor
    ) -> torch.Tensor:
        logits = features.unflatten(1, (self.bins, -1)).mean(2)
        targets = target(torch.cat(values), self.bins, *self.target)
        return jensen_shannon(logits, targets).mean()


class Peer:
    """A training in PyTorch, eager or compiled."""

    def __init__(
        self,
        method: Method,
        config: ml_collections.ConfigDict,
        weights: Weights,
        *,
        device: str,
        compile_mode: str | None = None,
    ):
        """Builds the networks, the optimizer and the view maker.

        Args:
          method: DUET or SimCLR of the project, for its settings.
          config: resolved.
          weights: see `build_networks`.
          device: "cpu" or "cuda".
          compile_mode: of torch.compile; None to run eagerly.
        """
        self.device = torch.device(device)
        learned = method.learned[0] if isinstance(method, Structured) else None
        self.make_view = ViewMaker(method.two_views.stack, learned, self.device)
        networks = build_networks(weights).train()
        self.networks = networks.to(self.device, memory_format=torch.channels_last)
        bfloat16 = config.compute_dtype == "bfloat16"
        self.objective = Objective(self.networks, method, bfloat16=bfloat16)
        options = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.networks.parameters(),
            lr=options.learning_rate,
            betas=(options.b1, options.b2),
            eps=options.eps,
            weight_decay=options.weight_decay,
            fused=True,
        )
        if compile_mode is not None:
            self.make_view.compile(fullgraph=True, dynamic=False)
            self.objective.compile(fullgraph=True, dynamic=False, mode=compile_mode)

    def place(self, images: np.ndarray, labels: np.ndarray, order: np.ndarray) -> None:
        """Puts the data on the device.

        Args:
          images: uint8 [examples, side, side, channels].
          labels: [examples].
          order: the examples of each batch, [batches, batch].
        """
        images, order = (torch.from_numpy(a).to(self.device) for a in (images, order))
        self.data = images, self.as_labels(labels), order

    def as_view(self, images: np.ndarray, structure: np.ndarray | None) -> tuple:
        """Returns a view, NHWC float32, in the form that `update` needs."""
        nchw = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
        if structure is not None:
            structure = torch.from_numpy(structure).to(self.device)
        return nchw.contiguous(memory_format=torch.channels_last), structure

    def as_labels(self, labels: np.ndarray) -> torch.Tensor:
        """Returns int labels in the form that `update` needs."""
        return torch.from_numpy(labels.astype(np.int64)).to(self.device)

    def update(self, first: tuple, second: tuple, labels: torch.Tensor) -> Metrics:
        """Updates the parameters from two views; see `Objective`."""
        loss, metrics = self.objective(first, second, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return metrics

    def run(self, steps: int) -> float:
        """Makes updates, waits for them and returns the last loss."""
        images, labels, order = self.data
        for step in range(steps):
            rows = order[step % len(order)]
            # NHWC is NCHW in channels-last memory.
            batch = images[rows].permute(0, 3, 1, 2)
            views = self.make_view(batch), self.make_view(batch)
            metrics = self.update(*views, labels[rows])
        return metrics["loss"].item()

    def gradients(self) -> Weights:
        """Returns the running mean of the gradients by torch name, of each network."""
        moments = self.optimizer.state
        return {
            name: {
                k: moments[p]["exp_avg"].cpu().numpy()
                for k, p in network.named_parameters()
            }
            for name, network in self.networks.items()
        }

    def weights(self) -> Weights:
        """Returns parameters and running statistics by torch name, of each network."""
        return {
            name: {k: v.cpu().numpy() for k, v in network.state_dict().items()}
            for name, network in self.networks.items()
        }


def set_up(*, gpu: bool, threads: int) -> None:
    """Uses all cores, and lets cuDNN find the fastest convolutions.

    Raises:
      UsageError: there is a `gpu` that PyTorch does not find.
    """
    if gpu and not torch.cuda.is_available():
        raise UsageError(
            "JAX finds a GPU and PyTorch does not; install a build of torch for the "
            "same CUDA version, or use config.device=cpu."
        )
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True


def allow_tf32(allowed: bool) -> None:
    """Allows or forbids TF32 in float32 convolutions and products."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
