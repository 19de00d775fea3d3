"""Datasets: spec (what there is), index (the images of each), folds, pixels, audit, phantoms, fetch.

A function and its module share a name: `medq.datasets.index` is the function. Imported eagerly for that
reason; PIL, scikit-learn and the rest of the heavy ones are imported where they are used.
"""

from medq.datasets.audit import audit, twins_to_remove
from medq.datasets.fetch import check, fetch
from medq.datasets.folds import folds, inner_split, subset
from medq.datasets.index import DatasetWarning, dataset_root, index
from medq.datasets.pixels import pixels, read_image
from medq.datasets.spec import DatasetSpec
