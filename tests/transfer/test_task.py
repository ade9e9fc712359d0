import pytest
import torch
from torchvision.models.detection import FasterRCNN

from boxwise.data.targets import Labelled
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.samples import DetectionBatch, TrainSamples, collate
from boxwise.transfer.task import Detection, DetectionTask

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CONFIG = FasterRCNNFPN(
    backbone="resnet18",
    fpn_channels=32,
    min_size=64,
    max_size=64,
    box_batch_size_per_image=16,
    rpn_post_nms_train=50,
    rpn_post_nms_test=50,
    score_threshold=0.01,
    flip=0.0,
)


@pytest.fixture
def detector() -> FasterRCNN:
    torch.manual_seed(0)
    return CONFIG.build(classes=2, mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def batch(drawn: Labelled) -> DetectionBatch:
    samples = TrainSamples(drawn, CONFIG, seed=0)
    return collate([samples.sample(i, 0) for i in (0, 2, 3, 1)])


def pictures(batch: DetectionBatch) -> list[torch.Tensor]:
    """What torchvision's own forward takes."""
    return [image[:, :h, :w] / 255 for image, (h, w) in zip(batch.images, batch.sizes)]


def test_images_are_normalised_as_torchvision_does(detector: FasterRCNN, batch: DetectionBatch) -> None:
    """The padding must be zero after normalising, where the mean is, not black."""
    detector.transform._skip_resize = True
    expected = detector.transform(pictures(batch))[0].tensors
    torch.testing.assert_close(Detection(detector).normalise(batch), expected, atol=1e-5, rtol=0)


def test_losses_are_those_of_torchvisions_forward(detector: FasterRCNN, batch: DetectionBatch) -> None:
    """The short way round its transform must change nothing but time; one image has no boxes."""
    assert 0 in batch.counts and len(set(batch.sizes)) > 1
    detector.transform._skip_resize = True
    module = Detection(detector).train()
    torch.manual_seed(1)
    ours = module(batch)
    torch.manual_seed(1)
    theirs = detector(pictures(batch), batch.targets())
    assert ours.keys() == {"objectness", "rpn_box", "classifier", "box", "loss"}
    for mine, name in {
        "objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "classifier": "loss_classifier",
        "box": "loss_box_reg",
    }.items():
        torch.testing.assert_close(ours[mine], theirs[name], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours["loss"], sum(theirs.values()))


def test_detections_are_those_of_torchvisions_forward(detector: FasterRCNN, drawn: Labelled) -> None:
    samples = TrainSamples(drawn, CONFIG, seed=0)
    batch = collate([samples.sample(1, 0)])  # 64 x 64: torchvision's resize leaves it alone
    detector.eval()
    with torch.no_grad():
        ours, theirs = Detection(detector).eval().detect(batch), detector(pictures(batch))
    assert len(theirs[0]["scores"]) > 5
    for name, tensor in theirs[0].items():
        torch.testing.assert_close(ours[0][name], tensor, atol=1e-4, rtol=1e-4)


def test_every_parameter_gets_a_gradient(detector: FasterRCNN, batch: DetectionBatch) -> None:
    task = DetectionTask(detector)
    task.module.train()(batch)["loss"].backward()
    assert [n for n, p in task.module.named_parameters() if p.grad is None] == []


def test_images_without_any_box_train(detector: FasterRCNN, drawn: Labelled) -> None:
    """A batch of background alone must give finite losses and gradients, not an empty mean."""
    samples = TrainSamples(drawn, CONFIG, seed=0)
    task = DetectionTask(detector)
    losses = task.module.train()(collate([samples.sample(2, 0)] * 2))
    losses["loss"].backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in task.module.parameters() if p.grad is not None)


def test_the_task_is_what_the_loop_asks_for(detector: FasterRCNN, batch: DetectionBatch) -> None:
    task = DetectionTask(detector)
    moved = task.prepare(batch, torch.device("cpu"))
    assert task.images(batch) == 4 and torch.equal(moved.images, batch.images)
    assert task.figures() == {}
    before = {n: t.clone() for n, t in task.module.state_dict().items()}
    task.after_step(0, 10, ok=torch.tensor(1.0))
    assert all(torch.equal(t, before[n]) for n, t in task.module.state_dict().items())
    assert not {"mean", "std"} & before.keys()


def test_a_few_steps_learn_the_pictures(detector: FasterRCNN, batch: DetectionBatch) -> None:
    """Swapped targets, labels off by one or boxes in the wrong frame leave the losses where they were."""
    task = DetectionTask(detector)
    optimiser = torch.optim.SGD(task.module.train().parameters(), lr=0.02, momentum=0.9)
    losses = []
    torch.manual_seed(0)
    for _ in range(12):
        loss = task.module(batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_bfloat16_trains(detector: FasterRCNN, batch: DetectionBatch) -> None:
    """Losses under autocast agree with float32 to its precision, and are float32 themselves."""
    module = Detection(detector).train()
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(module(batch))
    assert all(loss.dtype == torch.float32 for loss in found[1].values())
    torch.testing.assert_close(found[1]["loss"], found[0]["loss"], atol=0.1, rtol=0.1)
    found[1]["loss"].backward()
