"""Commands on addresses: which take them, what they print, and what those that cannot say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoint.sources.conftest import world  # noqa: F401
from tests.checkpoint.sources.remote_models import write_folder
from tests.checkpoint.sources.stand_in import StandIn


@pytest.fixture
def model(world: StandIn) -> str:  # noqa: F811
    """The address of a model."""
    write_folder(world.root / "model")
    write_folder(world.root / "other", seed=2)
    return f"{world.url}/files/model/model.safetensors"


def test_inspect_and_check_say_what_was_moved_and_of_which_version(run, model: str) -> None:
    for command in ("inspect", "check"):
        code, out, err = run(command, model)
        assert (code, err) == (0, "")
        assert "moved in" in out.replace("\n  ", " ")
        assert "revision one" in " ".join(out.split())


def test_every_command_on_one_checkpoint_takes_an_address(run, model: str, tmp_path: Path) -> None:
    for arguments in (
        ["capacity"],
        ["capacity", "--layer", "1"],
        ["kernel"],
        ["kernel", "--output", tmp_path / "k.npz"],
    ):
        code, out, err = run(arguments[0], model, *arguments[1:], "--length", "64")
        assert code == 0, err
        assert out
    code, out, _ = run("compare", model, model.replace("/model/", "/other/"), "--strict")
    assert (code, "differ" in out) == (1, True)


def test_check_streams_a_line_for_each_address_from_several_processes(run, model: str) -> None:
    bad = model.replace("/model/", "/absent/")
    paths = [model, bad, model.replace("/model/", "/other/")]
    code, out, _ = run("check", *paths, "--jobs", "2", "--format", "jsonl")
    documents = [json.loads(line) for line in out.splitlines()]
    assert code == 2
    assert [one["checkpoint"]["path"] for one in documents] == paths
    assert [one["checkpoint"]["given"] for one in documents] == paths
    assert documents[0]["source"]["url"] == model
    assert documents[0]["source"]["requests"] >= 2
    assert "does not exist" in documents[1]["error"]["seen"]


def test_sarif_keeps_the_address(run, model: str) -> None:
    data = json.loads(run("check", model, "--format", "sarif")[1])
    assert data["runs"][0]["artifacts"][0]["location"]["uri"] == model


@pytest.mark.parametrize("command", ["probe", "retrain", "watch"])
def test_a_command_that_needs_the_whole_says_how_to_get_it(run, command: str) -> None:
    code, _, err = run(command, "hf://org/model@v1")
    assert code == 2
    assert "hf download org/model --revision v1 --local-dir DIR" in err
