"""SimCLR: views of the same image attract, views of different images repel.

Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
Representations".
"""

from duet_jax.methods import base
from duet_jax.types import Array


class SimCLR(base.Method):
    """NT-Xent on the full features."""

    def loss(
        self,
        networks: base.Networks,
        views: base.Views,
        labels: Array,
        mask: Array | None,
        *,
        train: bool,
    ) -> tuple[Array, base.Metrics]:
        """Returns NT-Xent plus the online probe's loss, and the metrics."""
        features = base.encode_views(networks, views, train=train)
        loss, metrics = self.two_views.loss(
            networks, features[0], features, labels, mask, train=train
        )
        return loss, {"loss": loss, **metrics}
