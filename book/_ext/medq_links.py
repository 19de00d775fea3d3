"""Addresses of the repository's files. `_config.yml` is the one place that names the repository."""

from functools import cache
from urllib.parse import quote

from medq import paths


@cache
def config():
    """`_config.yml` at the top of the repository, as a dict."""
    import yaml

    return yaml.safe_load((paths.ROOT / "_config.yml").read_text(encoding="utf-8"))


def repository_url(path=""):
    """Address of a file or folder (relative to the repository's top) on the repository's host."""
    repository = config()["repository"]
    if not path:
        return repository["url"]
    kind = "tree" if (paths.ROOT / path).is_dir() else "blob"
    return f"{repository['url']}/{kind}/{repository['branch']}/{quote(path)}"


def in_repository(path):
    """Whether `path`, relative to the repository's top, exists."""
    return (paths.ROOT / path).exists()


def colab_url(path):
    """Address that opens the notebook at `path` in Colab."""
    owner, name = config()["repository"]["url"].rstrip("/").split("/")[-2:]
    branch = config()["repository"]["branch"]
    return f"{config()['launch_buttons']['colab_url']}/github/{owner}/{name}/blob/{branch}/{quote(path)}"


def binder_url(path=""):
    """Address that opens `path` in JupyterLab on Binder."""
    owner, name = config()["repository"]["url"].rstrip("/").split("/")[-2:]
    hub, branch = config()["launch_buttons"]["binderhub_url"], config()["repository"]["branch"]
    return f"{hub}/v2/gh/{owner}/{name}/{branch}?urlpath=lab/tree/{quote(path)}"
