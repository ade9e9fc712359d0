"""The command line: quick to start, clear about mistakes, exit codes that scripts can rely on."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest

from boxwise.cli import VERBS, _split, main
from boxwise.strict import SettingsError


def test_help_starts_in_under_a_second_and_without_torch() -> None:
    program = (
        "import sys; from boxwise.cli import main\n"
        "main(['--help']); main(['report', '--help'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 2  # one second on a quiet machine


def test_the_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {verb} " in said for verb in VERBS)


@pytest.mark.parametrize("argv", [[], ["pretrian"], ["pretrain", "scrl"], ["report", "--outt", "x"]])
def test_wrong_usage_exits_with_2(argv: list[str]) -> None:
    assert main(argv) == 2


def test_a_misspelt_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    main(["pretrian"])
    assert "did you mean pretrain?" in capsys.readouterr().err


def test_a_misspelt_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", "runs/x", "--dat", "d"])
    assert "did you mean --data?" in capsys.readouterr().err


def test_settings_are_told_from_the_verbs_own_flags() -> None:
    known, settings = _split(
        "pretrain",
        [
            "scrl",
            "--data",
            "d",
            "--optim.lr",
            "1e-2",
            "--out=o",
            "--batch-size=64",
            "--compile",
            "--resume",
            "--seed",
            "-1",
        ],
    )
    assert known == ["scrl", "--data", "d", "--out=o", "--resume"]
    assert settings == {"optim.lr": 0.01, "batch_size": 64, "compile": True, "seed": -1}


def test_verbs_without_recipe_take_no_settings() -> None:
    with pytest.raises(SettingsError, match="no such flag"):
        _split("doctor", ["--optim.lr", "1"])


def test_every_wrong_setting_is_named_before_data_is_touched(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["pretrain", "scrl", "--data", "/nowhere", "--out", "/nowhere/out"]
    assert (
        main([*argv, "--optim.lrr", "1", "--method.boxes", "many", "--epochs", "3", "--batch-size", "0"]) == 2
    )
    said = capsys.readouterr().err
    assert "optim.lrr" in said and "optim.lr?" in said and "method.boxes" in said and "/nowhere" not in said


def test_missing_data_is_one_sentence_and_exit_code_1(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    assert main(["pretrain", "scrl", "--data", str(tmp_path / "gone"), "--out", str(tmp_path / "o")]) == 1
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and str(tmp_path / "gone") in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["finetune", "faster_rcnn_fpn", "--data", "/nowhere", "--out", "o", "--labels", "ten"], "got ten"),
        (["report"], "name the run folders"),
    ],
)
def test_what_is_missing_or_no_number_is_wrong_usage(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert said in err and "/nowhere" not in err


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    program = (
        "import sys; from boxwise.cli import main; sys.stdin.readline(); sys.exit(main(['list', 'methods']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdin and running.stdout and running.stderr
        running.stdout.close()
        running.stdin.write(b"\n")
        running.stdin.close()
        assert running.stderr.read() == b"" and running.wait() == 0


def test_the_help_of_a_recipe_names_its_short_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "scrl", "--help"]) == 0
    said = capsys.readouterr().out
    assert "usage: boxwise pretrain" in said
    assert "--run.batch_size 8192" in said and "--batch-size, " in said and "--image-size" in said


def test_the_demo_keeps_out_of_a_folder_of_other_things(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("")
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err and len([*tmp_path.iterdir()]) == 1


def test_no_batch_size_is_proposed_where_none_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "only.png")
    words = ["pretrain", "scrl", "--data", str(tmp_path / "photos"), "--out", str(tmp_path / "run")]
    assert main([*words, "--backbone", "test_resnet", "--image-size", "32", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.strip().endswith("1 image is fewer than one batch of 2: add images")


@pytest.mark.parametrize(
    ("verb", "mend"), [("pretrain", "go on with --resume"), ("demo", "start again with")]
)
def test_a_stopped_run_says_what_its_command_can_do(
    verb: str, mend: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a stopped demo is told to go on with --resume, a flag that it lacks."""

    def stop(arguments: object, settings: object) -> int:
        raise SystemExit(143)

    monkeypatch.setattr(VERBS[verb], "call", stop)
    words = ["scrl", "--data", "d", "--out", "o"] if verb == "pretrain" else []
    assert main([verb, *words]) == 143
    assert mend in capsys.readouterr().err
    assert ("--resume" in _flags(verb)) == (mend == "go on with --resume")


def _flags(verb: str) -> set[str]:
    return {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(VERBS[verb])}


def test_a_json_without_another_to_measure_on_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a detector is measured on what it was trained on and nothing says so."""
    words = [
        "finetune",
        "faster_rcnn_fpn",
        "--data",
        str(tmp_path / "boxes.json"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(words) == 1
    assert "pass --val FILE.json" in capsys.readouterr().err
