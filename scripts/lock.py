"""Write requirements.lock from what is installed in this environment: `make lock`."""

from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """# Versions that are known to work together (Python 3.11). Used as constraints: only what an extra asks for is installed.
# Written by `make lock`; pyproject.toml says what is needed, environment.yml names the same versions.
"""


def main():
    """One `name==version` per installed distribution, without local version labels and without medq itself."""
    pins = {d.metadata["Name"].lower().replace("_", "-"): d.version.split("+")[0] for d in metadata.distributions()}
    lines = [f"{name}=={version}" for name, version in sorted(pins.items()) if name not in ("medq", "pip")]
    (ROOT / "requirements.lock").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
