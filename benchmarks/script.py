"""One cell as a plain script: torchvision's image folder and loader, Adam, PyTorch's quantization, nothing shared.

    python benchmarks/script.py IMAGES MODEL OPTIONS REGIME EPOCHS OUT.csv

IMAGES holds Training/<class>/ and Testing/<class>/; OPTIONS (JSON) go to timm with the name of the MODEL. An INT8 regime
trains its own FP32 model for EPOCHS first; QAT then trains one epoch more. Writes the class probabilities of the held-out
images. `benchmarks/batch.py` times it.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import torch

from medq import _torchvision

_torchvision.ensure()  # where torchvision's compiled part does not fit torch, timm and transforms work without it

import timm
from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

SIDE, BATCH, CALIBRATION = 64, 32, 64
TO_TENSOR = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
PLAIN = transforms.Compose([transforms.Resize((SIDE, SIDE)), *TO_TENSOR])
AUGMENTED = transforms.Compose(
    [
        transforms.Resize((SIDE, SIDE)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomRotation(15),
        transforms.ColorJitter(brightness=0.2),
        *TO_TENSOR,
    ]
)


def train(model, images, held_out, epochs):
    """Adam on cross-entropy, the epoch with the best held-out accuracy kept (section 2.5)."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-4)
    best = -1.0, None
    for _ in range(epochs):
        model.train()
        for x, y in DataLoader(images, BATCH, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        p, y = predict(model, held_out)
        accuracy = float((p.argmax(1) == y).float().mean())
        if accuracy > best[0]:
            best = accuracy, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best[1])


@torch.inference_mode()
def predict(model, images):
    """(probabilities [n, classes], labels [n]) of a folder of images."""
    model.eval()
    batches = [(model(x).softmax(1), y) for x, y in DataLoader(images, BATCH)]
    return tuple(torch.cat(part) for part in zip(*batches))


def quantized(model, regime, images, held_out):
    """The INT8 model of a trained one: `ptq-…` calibrates it, `qat-…` trains it for one epoch."""
    method, engine = regime.split("-")
    torch.backends.quantized.engine = engine
    example = (torch.zeros(1, 3, SIDE, SIDE),)
    if method == "qat":
        model = prepare_qat_fx(model.train(), get_default_qat_qconfig_mapping(engine), example)
        train(model, images, held_out, 1)
    else:
        model = prepare_fx(model.eval(), get_default_qconfig_mapping(engine), example)
        predict(
            model,
            Subset(datasets.ImageFolder(images.root, PLAIN), range(0, len(images), max(1, len(images) // CALIBRATION))),
        )
    return convert_fx(model.eval())


def main(folder, name, options, regime, epochs, out):
    """Train, quantize if the regime says so, write the predictions."""
    torch.manual_seed(42)
    images = datasets.ImageFolder(Path(folder) / "Training", AUGMENTED)
    held_out = datasets.ImageFolder(Path(folder) / "Testing", PLAIN)
    model = timm.create_model(name, num_classes=len(images.classes), **json.loads(options))
    train(model, images, held_out, int(epochs))
    if regime != "fp32":
        model = quantized(model, regime, images, held_out)
    p, y = predict(model, held_out)
    pd.DataFrame(p.numpy(), columns=images.classes).assign(label=y.numpy()).to_csv(out, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
