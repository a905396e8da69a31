"""What writes a site's node in each dialect: a module and a `Writer` each."""

from __future__ import annotations

from qxcompiler.passes.emission.contrib import ContribWriter
from qxcompiler.passes.emission.qdq import QdqWriter
from qxcompiler.passes.emission.qxc import QxcWriter
from qxcompiler.passes.emission.writer import Writer

__all__ = ["WRITERS", "Writer"]

WRITERS: dict[str, type[Writer]] = {"qxc": QxcWriter, "qdq": QdqWriter, "contrib": ContribWriter}
