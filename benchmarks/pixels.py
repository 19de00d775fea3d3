"""A training epoch fed from decoded pixels, against pre-made random tensors and torchvision's ImageFolder.

    python benchmarks/pixels.py [--dataset BrainMRI] [--image-size 64] [--images 960] [--backbone resnet18]

The same model takes the same steps; only where its batches come from differs: medq's own (gathered from the
array of decoded pixels, augmented as a batch), float tensors that lie ready (nothing can be fed faster), and
ImageFolder + DataLoader with the same augmentation per image. The three are timed in turn, so that a drifting
machine moves all of them; the medians and their ratios are printed. Goal: at least 0.95 of the speed of the
pre-made tensors. The dataset must have the layout `folders`, with its images below MEDQ_DATA.
"""

import argparse
import statistics
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

from medq import _torchvision, augment, backbones, params
from medq.datasets import dataset_root, index, pixels
from medq.errors import one_of
from medq.fit import Images


def main():
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--dataset", default="BrainMRI")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    catalogue = params.datasets()
    known = [name for name, spec in catalogue.items() if spec.layout == "folders"]
    spec = catalogue[one_of("dataset", options.dataset, known)]
    frame = index(spec)
    frame = frame[frame["split"] != "held_out"].sample(options.images, random_state=0)
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        array, _ = pixels(frame, options.image_size, cache)
        print(f"decoding {len(frame)} images once: {time.perf_counter() - start:.2f} s")
        report(
            options,
            {
                "decoded pixels": decoded(options, array, frame["label"].to_numpy()),
                "pre-made tensors": premade(options, len(spec.classes)),
                "ImageFolder": image_folder(options, spec, frame),
            },
            len(spec.classes),
        )


def report(options, feeds, n_classes):
    """Time an epoch of each feed in turn, `repeats` times after a first that warms up; print the medians."""
    model = backbones.create(options.backbone, n_classes, options.image_size).to(
        options.device, memory_format=torch.channels_last
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    seconds = {name: [] for name in feeds}
    for _ in range(options.repeats + 1):
        for name, feed in feeds.items():
            seconds[name].append(epoch(model, optimizer, feed, options.device))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:>17}: {median:7.2f} s an epoch, {options.images / median:7.0f} images/s")
    ours = medians["decoded pixels"]
    print(f"speed relative to pre-made tensors: {medians['pre-made tensors'] / ours:.3f}")
    print(f"speed relative to ImageFolder:      {medians['ImageFolder'] / ours:.2f}")


def epoch(model, optimizer, feed, device):
    """Seconds of one training epoch over `feed()`, which yields (images, labels)."""
    model.train()
    start = time.perf_counter()
    for x, y in feed():
        x = x.to(device, non_blocking=True, memory_format=torch.channels_last)
        loss = F.cross_entropy(model(x), y.to(device, non_blocking=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def decoded(options, array, labels):
    """medq's own path: what `medq.fit` trains on."""
    partition = SimpleNamespace(images=array, labels=labels, train=np.arange(len(labels)))
    images = Images(partition, options.device)
    generator = torch.Generator().manual_seed(0)
    return lambda: images.batches(options.batch_size, generator)


def premade(options, n_classes):
    """Normal deviates of the right shape, on the device before the clock starts."""
    shape = (options.images, 3, options.image_size, options.image_size)
    x = torch.randn(shape).to(options.device, memory_format=torch.channels_last)
    y = torch.randint(n_classes, (options.images,)).to(options.device)
    return lambda: zip(x.split(options.batch_size), y.split(options.batch_size), strict=True)


def image_folder(options, spec, frame):
    """torchvision's way: decode, resize and augment each image whenever it is needed, in worker processes."""
    _torchvision.ensure()
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = transforms.Compose(
        [
            transforms.Resize((options.image_size, options.image_size)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(augment.MAX_DEGREES),
            transforms.ColorJitter(brightness=augment.BRIGHTNESS),
            transforms.ToTensor(),
            transforms.Normalize(augment.MEAN, augment.STD),
        ]
    )
    wanted = set(frame["path"])
    above_classes = spec.pattern.split("{class}")[0].replace("{split}", spec.splits.get("train", ""))
    root = dataset_root(spec) / above_classes
    data = ImageFolder(root, transform=steps, is_valid_file=lambda path: path in wanted)
    loader = torch.utils.data.DataLoader(
        data,
        options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        pin_memory=options.device == "cuda",
        persistent_workers=options.workers > 0,
    )
    return lambda: loader


if __name__ == "__main__":
    main()
