"""Groups of images that are drawn, split and divided as one: lesions, patients, copies of each other."""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def group_numbers(groups, n):
    """Group number int [n] of each of `n` images from their `groups`, numbers or texts [n]; ValueError for anything else."""
    groups = np.asarray(groups, dtype=object)  # else one text among them makes texts of 1 and NaN
    if groups.shape != (n,):
        raise ValueError(f"groups must hold one group for each of {n} images, but has shape {groups.shape}.")
    try:
        found, _ = pd.factorize(groups)
    except TypeError:
        raise ValueError("groups must hold numbers or texts, but some entry is neither.") from None
    if (found < 0).any():
        raise ValueError(f"groups is missing for {int((found < 0).sum())} of {n} images.")
    return found


def components(n, edges):
    """Number int [n] of the connected component of each of `n` nodes, in the order of their first nodes.

    `edges`: pairs of nodes, int [m, 2] or a list of tuples.
    """
    first, other = np.asarray(edges, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, other)), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def connected(image_id, *memberships):
    """Group number [n] of each image: images that share an entry of any membership are one group.

    `memberships`: arrays [n] such as lesion or patient identifiers, or DataFrames with the columns `image_id` and
    `group_id` (as `medq.datasets.audit` returns: near-duplicates). Groups that overlap are joined.
    """
    place = pd.Series(np.arange(len(image_id)), index=np.asarray(image_id))
    edges, start = [np.empty((0, 2), dtype=int)], len(place)  # from images to groups, which are nodes behind the images
    for member in memberships:
        if isinstance(member, pd.DataFrame):
            rows = member[member["image_id"].isin(place.index)]
            images, groups = place[rows["image_id"]].to_numpy(), pd.factorize(rows["group_id"])[0]
        else:
            images, groups = place.to_numpy(), group_numbers(member, len(place))
        edges.append(np.column_stack([images, groups + start]))
        start += int(groups.max(initial=-1)) + 1
    return components(start, np.concatenate(edges))[: len(place)]
