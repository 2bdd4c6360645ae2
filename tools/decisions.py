"""A hook of the docs site (mkdocs.yml): whatever is in docs/adr is listed under Decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> None:
    """Called by MkDocs before it reads the navigation."""
    pages = Path(config.docs_dir)
    (section,) = (item for item in config.nav if isinstance(item, dict) and "Decisions" in item)
    section["Decisions"] += sorted(str(page.relative_to(pages)) for page in pages.glob("docs/adr/0*.md"))
