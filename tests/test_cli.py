"""The command line: quick to start, clear about mistakes, exit codes that scripts can rely on."""

import dataclasses
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from boxwise.cli import VERBS, _split, main
from boxwise.cli.failures import ROOT, plain_warnings
from boxwise.strict import SettingsError


@pytest.mark.parametrize("words", ["'--help'", "'report', '--help'"])
def test_help_starts_in_under_a_second_and_without_torch(words: str) -> None:
    program = f"import sys; from boxwise.cli import main; main([{words}]); sys.exit('torch' in sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert taken < 1  # of the processor, however busy it is


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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pretrain", "scrl", "--dta", "photos"], ["dta: no such setting, did you mean --data?"]),
        (
            ["pretrain", "--dta", "photos", "scrl", "--lrr=1"],
            ["mean --data?", "lrr: no such setting, did you mean lr?"],
        ),
        (["compare", "--dta", "d", "--init", "random", "x"], ["dta: no such setting, did you mean --data?"]),
        (
            [
                "finetune",
                "faster_rcnn_fpn",
                "--data",
                "d",
                "--label",
                "0.1",
                "--weigths",
                "x",
                "--optim.lrr",
                "1",
            ],
            ["did you mean --labels?", "did you mean --weights?", "did you mean optim.lr?"],
        ),
        (
            ["pretrain", "scrl", "--data", "d", "--allow-drif"],
            ["allow_drif: no such setting, did you mean --allow-drift?"],
        ),
    ],
)
def test_a_misspelt_flag_that_passes_for_a_setting_names_the_nearest_of_both(
    words: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when --dta is passed over in silence since --data is missing, or --weigths is told to be weights.parts."""
    assert main([*words, "--out", "o"]) == 2
    said = capsys.readouterr().err
    assert all(sentence in said for sentence in told), said


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


def test_a_bare_switch_leaves_the_recipe_alone() -> None:
    """Breaks when `--compile scrl` takes the recipe for its value."""
    assert _split("pretrain", ["--compile", "scrl", "--out", "o"]) == (
        ["scrl", "--out", "o"],
        {"compile": True},
    )
    assert _split("pretrain", ["--compile", "false", "scrl"]) == (["scrl"], {"compile": False})


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
        (
            ["finetune", "faster_rcnn_fpn", "--data", "/nowhere", "--out", "o", "--labels", "0"],
            "--labels: expected a share above 0 and up to 1.0, or a count from 1, got 0",
        ),
        (["finetune", "faster_rcnn_fpn", "--data", "/nowhere", "--out", "o", "--labels=-1"], "got -1"),
        (["finetune", "faster_rcnn_fpn", "--data", "/nowhere", "--out", "o", "--labels", "1.5"], "got 1.5"),
        (
            ["finetune", "faster_rcnn_fpn", "--data", "/nowhere", "--out", "o", "--data.labels", "1.5"],
            "data.labels: expected a share",
        ),
        (
            ["compare", "--data", "/nowhere", "--init", "random", "b", "--out", "o", "--labels", "0.1", "0"],
            "--labels: expected a share",
        ),
        (["scenes", "--out", "/nowhere/out", "--count", "0"], "--count: expected 1 or more, got 0"),
        (
            ["scenes", "--out", "/nowhere/out", "--count", "1", "--val=-1"],
            "--val: expected 0 or more, got -1",
        ),
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


@pytest.mark.parametrize(
    "words",
    [["scrl", "--data", "photos", "--help"], ["--data", "photos", "--resume", "--out=o", "scrl", "--help"]],
)
def test_the_help_of_a_recipe_wants_no_order_of_words(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when what follows a flag is taken for the recipe, or what follows a switch for its value."""
    assert main(["pretrain", *words]) == 0
    assert "settings of scrl_r50_200ep" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pretrain", "scrl", "--data", "", "--out", "o"], "--data: nothing follows"),
        (["pretrain", "scrl", "--data=", "--out", "o"], "--data=: nothing follows"),
        (["report", ""], "report: nothing follows"),
        (["data", "check", ""], "check: nothing follows"),
    ],
)
def test_an_unset_variable_is_not_this_folder(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when `--data "$PHOTOS"` with nothing in PHOTOS trains on whatever lies in the current folder."""
    assert main(argv) == 2
    assert said in capsys.readouterr().err


def test_errors_of_the_system_name_the_path_and_a_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a user reads [Errno 20], or a path without a word of what is wrong with it."""
    (tmp_path / "file").write_text("")
    argv = ["scenes", "--out", str(tmp_path / "file" / "below"), "--count", "1", "--val", "0", "--size", "32"]
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said and "a part of this path is a file" in said and "Errno" not in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "no space left on device; make room on the disk"),
        (
            PermissionError(13, "Permission denied", "runs/x"),
            "runs/x: permission denied; choose another place",
        ),
        (FileExistsError("runs/x: holds something"), "runs/x: holds something"),
        (MemoryError(), "out of memory: pass a smaller --batch-size"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "a process that reads images",
        ),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
            "out of memory: pass a smaller",
        ),
    ],
)
def test_what_the_system_refuses_is_one_sentence(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a full disk or a full memory ends in a traceback."""

    def fail(arguments: object, settings: object) -> int:
        raise error

    monkeypatch.setattr(VERBS["doctor"], "call", fail)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith(f"boxwise doctor: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["pretrain", "scrl", "--data", "x", "--out", "y", "--weights", "z"],
            "weights: finetune's; pretrain starts",
        ),
        (
            ["finetune", "faster_rcnn_fpn", "--data", "x", "--out", "y", "--init", "z"],
            "init: pretrain's and compare's",
        ),
        (
            ["pretrain", "scrl", "--data", "x", "--out", "y", "--method.max_iou", "None"],
            "; null stands for none",
        ),
    ],
)
def test_what_others_are_called_is_told(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a flag of another command, or Python's word for nothing, is answered without the right one."""
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_names_that_are_no_text_are_printed(tmp_path: Path) -> None:
    """Breaks when a look at a folder ends in a traceback since one name in it is Latin-1."""
    (tmp_path / "photos").mkdir()
    bad = os.fsencode(tmp_path / "photos") + b"/caf\xe9.jpg"
    try:
        Path(os.fsdecode(bad)).write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system wants text")
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "good.png")
    command = [sys.executable, "-m", "boxwise", "data", "check", str(tmp_path / "photos")]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C.UTF-8"}
    )
    assert r"caf\udce9.jpg" in ran.stdout and ran.stderr == ""


def test_a_torchvision_that_reads_no_jpeg_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when the command that finds what is wrong with a machine ends in it."""
    import torchvision.io

    from boxwise.run.doctor import doctor

    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    text, healthy = doctor()
    assert not healthy and "FAIL  jpeg" in text and "ok    python" in text


def test_errors_of_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a bug of boxwise is told without the traceback that finds it."""

    def fail(arguments: object, settings: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(VERBS["doctor"], "call", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


def test_our_warnings_are_told_without_a_line_of_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Breaks when a user reads UserWarning and a line of our source, or when others' warnings lose theirs."""
    with plain_warnings():
        assert warnings.formatwarning("look", UserWarning, str(Path(ROOT) / "data" / "x.py"), 3) == "look\n"
        assert "UserWarning" in warnings.formatwarning("look", UserWarning, "/elsewhere/x.py", 3)
    assert "UserWarning" in warnings.formatwarning("look", UserWarning, str(Path(ROOT) / "x.py"), 3)


def test_a_reader_may_close_the_help_of_a_recipe_early() -> None:
    """Breaks when `boxwise pretrain scrl --help | head -1` ends in a traceback."""
    program = (
        "import sys; from boxwise.cli import main; sys.stdin.readline()\n"
        "sys.exit(main(['pretrain', 'scrl', '--help']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdin and running.stdout and running.stderr
        running.stdout.close()
        running.stdin.write(b"\n")
        running.stdin.close()
        assert running.stderr.read() == b"" and running.wait() == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["finetune", "scrl"], "scrl: is a recipe of boxwise pretrain"),
        (["pretrain", "faster_rcnn_fpn"], "faster_rcnn_fpn: is a recipe of boxwise finetune"),
        (["pretrain", "scrl", "--config", "gone.yaml"], "gone.yaml: no such file"),
        (
            ["finetune", "faster_rcnn_fpn", "--detector.min_size", "0"],
            "detector.min_size: input should be greater",
        ),
        (["finetune", "fcn16s", "--image-size", "16"], "expected 32 or more"),
    ],
)
def test_what_was_named_in_the_wrong_place_is_wrong_usage(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a method that is given to finetune is told to be unknown, a missing file of settings to fail, or a
    size of 0 to be a "math domain error"."""
    assert main([*argv, "--data", "/nowhere", "--out", "o"]) == 2
    assert said in capsys.readouterr().err


def test_help_tells_of_inherited_settings_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when only what a class states itself has its words, as --data.workers of a detector's recipe had none."""
    assert main(["finetune", "faster_rcnn_fpn", "--help"]) == 0
    lines = {
        line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  --")
    }
    for key in ("data.workers", "data.max_value", "detector.min_size", "detector.score_threshold"):
        assert len(lines[f"--{key}"].split()) > 4, key


def test_the_short_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a newcomer who lists recipes does not meet the names that the README uses."""
    assert main(["list", "recipes"]) == 0
    said = capsys.readouterr().out
    assert "\n  scrl " in said and "\n  faster_rcnn_fpn " in said and said.count("\n  scrl_fpn ") == 1


def test_a_demo_replaces_nothing_but_a_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when --overwrite mixes a demo into a folder of photos."""
    (tmp_path / "mine.jpg").write_text("")
    assert main(["demo", "--out", str(tmp_path), "--overwrite"]) == 1
    assert "no earlier demo (mine.jpg)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jpg"]


@pytest.mark.parametrize(
    ("words", "size"),
    [(["pretrain", "scrl"], "views.0.crop.size"), (["finetune", "faster_rcnn_fpn"], "detector.min_size")],
)
def test_mistakes_of_every_kind_are_told_at_once(
    words: list[str], size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a misspelt key hides what cannot be together, or the backbone is looked at last of all."""
    flags = ["--image-size", "16", "--optim.lrr", "3", "--backbone", "resnet19"]
    assert main([*words, "--data", "/nowhere", "--out", "o", *flags]) == 2
    said = capsys.readouterr().err
    for told in ("optim.lrr: no such setting", f"{size}: ", "unknown backbone 'resnet19'"):
        assert told in said, told


@pytest.mark.parametrize("words", [["pretrain", "scrl"], ["finetune", "faster_rcnn_fpn"]])
def test_an_unknown_backbone_is_told_before_data_is_touched(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a misspelt backbone is found after all images were listed, or is called a failure."""
    assert main([*words, "--data", "/nowhere", "--out", "o", "--backbone", "resnet19"]) == 2
    said = capsys.readouterr().err
    assert "unknown backbone 'resnet19'; nearest: resnet18" in said and "/nowhere" not in said
