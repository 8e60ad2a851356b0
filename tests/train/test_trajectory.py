"""The same losses whatever the mesh, the accumulation and the number of processes."""

import json

import numpy as np
import pytest

from tests.support.train_runs import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(place):
    """On one device, without a mesh."""
    place.run("alone", data__eval=place.eval, eval__answers=2)
    losses = place.losses("alone")
    assert losses[-1] < losses[0]
    return losses


@pytest.mark.parametrize(
    ("name", "devices", "changes"),
    [
        ("fsdp", 8, {}),
        ("mixed", 8, {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}),
        ("accumulated", 1, {"accumulation": 4, "remat": "full"}),
        ("both", 4, {"mesh__fsdp": 2, "mesh__tensor": 2, "accumulation": 2, "loss_chunk": 16}),
    ],
)
def test_the_same_on_every_mesh_and_with_accumulation(name, devices, changes, place, expected):
    place.run(name, devices, **changes)
    np.testing.assert_allclose(place.losses(name), expected, rtol=1e-5)


def test_two_processes_of_four_devices(place, expected):
    several: dict[str, object] = {"data__eval": place.eval, "eval__answers": 2}
    several |= {"process__coordinator": f"127.0.0.1:{free_port()}", "process__count": 2, "mesh__tensor": 2}
    export = place.directory / "exported"
    processes = [place.start("two", 4, **several, process__index=number, export=export) for number in range(2)]
    printed = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    np.testing.assert_allclose(place.losses("two"), expected, rtol=1e-5)
    assert (export / "config.json").is_file()
    first, other = (
        [json.loads(line) for line in (place.directory / out / "predictions.jsonl").read_text().splitlines()]
        for out in ("alone", "two")
    )
    assert len(first) == 2
    assert other == first
