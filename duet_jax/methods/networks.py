"""The networks of a method, and their state as plain nested dicts."""

from flax import nnx

from duet_jax.models.heads import OnlineProbe, Projector


class Networks(nnx.Module):
    """The networks of a run; methods add their own, such as a `predictor`.

    Attributes:
      encoder: images to features; what is kept after training.
      projector: features (DUET: content) to the embeddings that are contrasted.
      online_probe: features to class logits; never trains the encoder. None if the
        images have no labels.
    """

    def __init__(
        self,
        encoder: nnx.Module,
        projector: Projector,
        online_probe: OnlineProbe | None,
    ):
        self.encoder = encoder
        self.projector = projector
        self.online_probe = online_probe


def split(networks: Networks) -> tuple[nnx.GraphDef, dict, dict]:
    """Returns the graph definition, parameters and running statistics, as dicts."""
    graphdef, params, batch_stats = nnx.split(networks, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)
