"""What can be said of a pair when everything else has been tried."""

from __future__ import annotations

from tests.matrix.features.meeting import Meeting, feature


@feature("every message as in the schema")
async def _schema(at: Meeting) -> None:
    assert not at.client.log.problems, "\n".join(at.client.log.problems[:3])
