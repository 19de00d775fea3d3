"""Addresses of the repository's files. `_config.yml` is the one place that names the repository."""

from functools import cache
from urllib.parse import quote

import yaml

from medq import paths


@cache
def config():
    """`_config.yml` at the top of the repository, as a dict."""
    return yaml.safe_load((paths.ROOT / "_config.yml").read_text(encoding="utf-8"))


def repository_url(path):
    """Address of a file or folder (relative to the repository's top) on the repository's host."""
    repository = config()["repository"]
    kind = "tree" if (paths.ROOT / path).is_dir() else "blob"
    return f"{repository['url']}/{kind}/{repository['branch']}/{quote(path)}"


def in_repository(path):
    """Whether `path`, relative to the repository's top, exists."""
    return (paths.ROOT / path).exists()


def colab_url(path):
    """Address that opens the notebook at `path` in Colab."""
    repository = config()["repository"]
    owner, name = repository["url"].rstrip("/").split("/")[-2:]
    return f"{config()['launch_buttons']['colab_url']}/github/{owner}/{name}/blob/{repository['branch']}/{quote(path)}"
