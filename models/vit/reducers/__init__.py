"""Ways in which the layers of a vision transformer run fewer tokens. A new one is a file here and a line below."""

from collections.abc import Mapping

TRAINING_FREE: Mapping[str, str] = {
    "cluster": "stepwell.models.vit.reducers.clustering:Clustering",
    "merge": "stepwell.models.vit.reducers.merging:Merging",
    "super": "stepwell.models.vit.reducers.super_tokens:SuperTokens",
}
"""Name -> ``module:Class``; every vision transformer has them."""
TRAINED: Mapping[str, str] = {
    "downsample": "stepwell.models.vit.reducers.downsampling:Downsampling",
    "route": "stepwell.models.vit.reducers.routing:Routing",
    "slim": "stepwell.models.vit.reducers.slimming:Slimming",
}
"""Name -> ``module:Class``; there if ``config.json`` lists them under ``reducers``."""
