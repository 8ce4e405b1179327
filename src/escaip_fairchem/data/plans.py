"""How files are divided into chunks, kept beside what was read: searching large files through takes minutes.

What a run left unfinished is only ever continued with the same files and options, so a plan found there holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .sources import Chunk, Source, Span, file_state, plan_chunks
from .writer import save_text

NAME = "plan.json"


def plan_once(
    sources: Sequence[Source], folder: Path, *, form: str | None, limit: int | None, show_progress: bool
) -> list[Chunk]:
    """Divide files into chunks, or take over how an interrupted run has divided the same files.

    Args:
        sources: The files.
        folder: Folder of what was read.
        form: Name of the format of all files; None recognises each.
        limit: Plan for this many structures.
        show_progress: Report on standard error.

    Returns:
        Chunks in the order of files and structures.
    """
    path = folder / NAME
    files = [[source.name, *file_state(source.path)] for source in sources]
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["files"] == files:
            return [_restored(entry, sources) for entry in kept["chunks"]]
    chunks = plan_chunks(sources, form=form, limit=limit, show_progress=show_progress)
    if not any(chunk.failure for chunk in chunks):  # what failed may succeed the next time
        numbers = {source: number for number, source in enumerate(sources)}
        entries = [{**vars(chunk), "source": numbers[chunk.source]} for chunk in chunks]
        save_text(path, json.dumps({"files": files, "chunks": entries}))
    return chunks


def _restored(entry: dict[str, Any], sources: Sequence[Source]) -> Chunk:
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    spans = tuple(Span(*span) for span in entry["spans"])
    return Chunk(**{**found, "source": sources[entry["source"]], "spans": spans})
