"""What an index page shows of the README: it holds no files, so relative addresses lead nowhere.

`home` of `[tool.hatch.metadata.hooks.custom]` in pyproject.toml is the one place that knows where
the repository is. While it is empty, figures are left out and links become their words; with an
address both become absolute, and the project gets its urls.
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def absolute(text: str, home: str) -> str:
    """Markdown without relative addresses.

    Args:
        text: markdown.
        home: address of the repository, as on GitHub; "" while there is none.
    """

    def link(match):
        picture, words, path = match.groups()
        if not home:
            return "" if picture else words
        kind = "raw" if picture else "blob"
        return f"{picture}[{words}]({home.rstrip('/')}/{kind}/main/{path})"

    parts = _CODE.split(text)
    parts[::2] = [_LINK.sub(link, part) for part in parts[::2]]
    return re.sub(r"\n{3,}", "\n\n", "".join(parts))


def urls(home: str) -> dict[str, str]:
    """The urls of the project."""
    home = home.rstrip("/")
    names = {"Source": "", "Changelog": "/blob/main/CHANGELOG.md", "Issues": "/issues"}
    return {name: home + path for name, path in names.items()} if home else {}


class CustomMetadataHook(MetadataHookInterface):
    """README and urls of the package."""

    def update(self, metadata: dict) -> None:
        """Fills in what pyproject.toml leaves to this file."""
        home = self.config.get("home", "")
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, home)}
        if home:
            metadata["urls"] = urls(home)
