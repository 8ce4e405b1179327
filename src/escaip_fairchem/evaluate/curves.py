"""What a training logged to TensorBoard."""

from __future__ import annotations

from pathlib import Path

from escaip_fairchem.errors import DataError

Curve = dict[int, float]


def read_curves(folder: Path) -> dict[str, Curve]:
    """Read all scalars of a run.

    Args:
        folder: The run's folder of event files, ``logs/tensorboard/<run>``.

    Returns:
        By name (``train/loss``, ``val/forces_mae``, …) the value at every logged step. Of values logged twice for one
        step, by a run that was resumed, the later counts.

    Raises:
        DataError: There are no event files.
    """
    # TensorBoard takes a second to import.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob("events.out.tfevents.*")):
        raise DataError(f"{folder}: holds no TensorBoard event file")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        name: {event.step: event.value for event in sorted(events.Scalars(name), key=lambda event: event.wall_time)}
        for name in events.Tags()["scalars"]
    }


def last_value(curve: Curve) -> float:
    """Value at the last step."""
    return curve[max(curve)]
