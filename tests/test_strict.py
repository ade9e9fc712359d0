"""Settings are read strictly, and every mistake is named at once with the nearest valid key."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from boxwise.config import LARS, SGD, AdamW, Data, Run, Schedule, TransferData, settings
from boxwise.methods.image_level import MoCoConfig
from boxwise.methods.scrl import Config as SCRLConfig
from boxwise.nn.encoder import EncoderConfig
from boxwise.strict import SettingsError, dump_yaml, keys, load_yaml, merge, nearest, plain, read, scalar

Either = Annotated[SGD | LARS, Field(discriminator="name")]


@settings
class Inner:
    size: tuple[float, float] = (0.2, 1.0)
    kind: Literal["a", "b"] = "a"


@settings
class Outer:
    inner: Inner = Inner()
    many: tuple[Inner, ...] = (Inner(), Inner())
    optim: Either = SGD()
    count: int | None = None


def test_settings_survive_yaml(tmp_path) -> None:
    value = Outer(inner=Inner(size=(1e-7, 3.0), kind="b"), optim=LARS(lr=1e-3), count=4)
    file = tmp_path / "c.yaml"
    file.write_text(dump_yaml(value))
    assert read(Outer, load_yaml(file)) == value


@pytest.mark.parametrize("amount", [1, 100, 1.0, 0.1, None])
def test_shares_and_counts_are_told_apart_by_their_point(amount: float | int | None) -> None:
    """Breaks when one image (1) and all of them (1.0) become the same, or a count is held to be a share."""
    labels = read(TransferData, {"labels": amount}).labels
    assert labels == amount and type(labels) is type(amount)


def test_a_tag_decides_the_class() -> None:
    """Without the literal name, a dumped LARS would load back as the first class that fits."""
    assert read(Either, plain(LARS(weight_decay=1e-6))) == LARS(weight_decay=1e-6)
    assert isinstance(read(Either, {"name": "sgd"}), SGD)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        read(Outer, {"inner": {"sise": [0, 1], "kind": "c"}, "many": [{"size": "x"}], "count": "three"})
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for part in ("inner.sise", "did you mean inner.size?", "inner.kind", "many.0.size", "count", "'three'"):
        assert part in text, part


def test_problems_inside_a_union_are_named_without_its_tag() -> None:
    with pytest.raises(SettingsError) as caught:
        read(Either, {"name": "lars", "trst": 1.0}, at="optim")
    assert caught.value.problems == ("optim.trst: no such setting, did you mean optim.trust?",)


def test_an_unknown_choice_lists_the_choices() -> None:
    with pytest.raises(SettingsError, match=r"optim.name: adamw is none of 'sgd', 'lars'"):
        read(Either, {"name": "adamw"}, at="optim")


def test_numbers_are_not_strings_and_whole_numbers_are_no_booleans() -> None:
    for raw in ({"epochs": "10"}, {"steps": 1.5}, {"early": 1}):
        with pytest.raises(SettingsError):
            read(Schedule, raw)
    assert read(Schedule, {"epochs": 10}).epochs == 10.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("0.5", 0.5),
        ("1.5e-6", 1.5e-6),
        ("-2", -2),
        ("true", True),
        ("[0.2, 1e0]", [0.2, 1.0]),
        ("resnet50", "resnet50"),
        ("null", None),
        ("a: b: c", "a: b: c"),
        ("1e3", 1000.0),
    ],
)
def test_flags_mean_what_they_say(text: str, value: object) -> None:
    assert scalar(text) == value and type(scalar(text)) is type(value)


def test_another_optimiser_starts_from_its_own_defaults() -> None:
    """SGD's `nesterov` laid under LARS would be an unknown key."""
    merged = merge(plain(SGD(nesterov=True)), {"name": "lars", "lr": 0.3})
    assert read(Either, merged) == LARS(lr=0.3)
    assert merge(plain(SGD()), {"name": "sgd", "lr": 1})["weight_decay"] == SGD().weight_decay


def test_one_item_of_a_list_can_be_changed() -> None:
    merged = merge(plain(Outer()), {"many": {"1": {"kind": "b"}}})
    assert read(Outer, merged).many == (Inner(), Inner(kind="b"))


def test_keys_reach_into_unions_and_tuples() -> None:
    known = set(keys(Outer))
    assert {"inner.size", "many.0.kind", "optim.trust", "optim.nesterov", "count"} <= known


def test_the_nearest_key_stands_at_the_place_that_was_typed() -> None:
    """Breaks when a key is proposed that is none, as many.kind is, or that changes another item."""
    with pytest.raises(SettingsError) as caught:
        read(tuple[Inner, ...], [{}, {"kin": "a", "zize": [0, 1]}], at="many")
    assert caught.value.problems == (
        "many.1.kin: no such setting, did you mean many.1.kind?",
        "many.1.zize: no such setting, did you mean many.1.size?",
    )


def test_the_nearest_key_may_stand_elsewhere() -> None:
    assert nearest("trust", ["optim.trust", "data.workers"]) == ", did you mean optim.trust?"
    assert nearest("zzzzzz", ["optim.trust"]) == ""


def test_a_file_that_is_no_mapping_is_refused(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    for text in ("- a\n- b", "{", ""):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"c\.yaml"):
            load_yaml(file)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (SGD, {"lr": -0.1, "momentum": 1.5, "weight_decay": -1e-4, "lr_batch": 0}),
        (LARS, {"lr": -1.0, "trust": -0.1}),
        (AdamW, {"lr": -1.0, "betas": [0.9, 1.1]}),
        (Schedule, {"warmup_steps": -1, "warmup_epochs": -0.5, "warmup_from": 2.0, "final_lr": -1.0}),
        (Run, {"batch_size": 0, "accumulate": 0, "devices": 0, "keep": 0, "log_every": 0, "save_every": 0}),
        (Run, {"clip_norm": 0.0, "threads": 0}),
        (Data, {"workers": -1, "max_value": 0}),
        (TransferData, {"labels": 0}),
        (TransferData, {"labels": -1}),
        (TransferData, {"labels": 1.5}),
        (TransferData, {"labels": 0.0}),
        (TransferData, {"min_keypoints": -1, "repeat_threshold": 1.5}),
        (SCRLConfig, {"width": 0, "hidden": -4, "max_iou": 7.0, "jitter": -3.0}),
        (EncoderConfig, {"fpn_channels": 0}),
        (MoCoConfig, {"queue": 0, "temperature": 0.0, "momentum": 1.5}),
    ],
)
def test_values_that_nothing_can_mean_are_named_before_data_is_touched(
    kind: type, raw: dict[str, Any]
) -> None:
    """Breaks when a negative rate is found by torch, after the images were listed and without the name of its flag."""
    with pytest.raises(SettingsError) as caught:
        read(kind, raw, at="x")
    assert {problem.partition(": ")[0].split(".")[1] for problem in caught.value.problems} == {*raw}


def test_what_fields_cannot_be_together_is_said_without_all_of_them() -> None:
    """Breaks when one wrong number is told with every setting of its class."""
    with pytest.raises(SettingsError) as caught:
        read(SCRLConfig, {"name": "scrl", "boxes": 0}, at="method")
    assert caught.value.problems == ("method: boxes, tries, min_box and pool_size start at 1",)
