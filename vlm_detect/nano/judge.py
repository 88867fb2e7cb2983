"""The judge of the renders: a small CNN trained on the ten classes of the photographs, independently of the renderer.

It provides two figures: how often it sees the class that a prompt named (chance is 10 %), and the Frechet distance
between its features of renders and of held-out photographs. The distance is computed like FID (arXiv 1706.08500) but on
this network's features, so it compares nano renderers with each other and not with published figures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import Tensor, nn

from vlm_detect.data.image_sets import CIFAR_CLASSES
from vlm_detect.nano.autoencoder import to_pixels
from vlm_detect.nano.config import JudgeConfig
from vlm_detect.nano.photos import Photos
from vlm_detect.nano.training import train


class Judge(nn.Module):
    """Three stages of two 3x3 convolutions, each stage halving the resolution; features are the mean over places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in range(3):
            for stride in (1, 2):
                out = width * 2**stage
                layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(True)]
                channels = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, len(CIFAR_CLASSES))

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 4 * width)."""
        return self.body(pixels).mean((2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> logits (B, classes)."""
        return self.head(self.features(pixels))

    def teach(self, pixels: Tensor, grid: int) -> tuple[Tensor, Tensor]:
        """Class shares (B, classes), and the features of grid x grid places (B, grid * grid, 4 * width)."""
        body = self.body(pixels)
        places = F.interpolate(body, size=(grid, grid), mode="nearest").flatten(2).transpose(1, 2)
        return self.head(body.mean((2, 3))).float().softmax(-1), F.layer_norm(places.float(), places.shape[-1:])


def augment(pixels: Tensor, generator: torch.Generator, shift: int = 4) -> Tensor:
    """Mirror half of the images (B, 3, H, W) and shift each by up to ``shift`` pixels, borders reflected."""
    mirrored = torch.rand(len(pixels), generator=generator) < 0.5
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels, (shift,) * 4, mode="reflect")
    offsets = torch.randint(2 * shift + 1, (len(pixels), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)])


def train_judge(
    config: JudgeConfig, training: Photos, held_out: Photos, folder: Path, seed: int, device: torch.device | str = "cpu"
) -> tuple[Judge, dict[str, float]]:
    """Train (or finish training) the judge; returns it with its accuracy on the held-out photographs."""
    torch.manual_seed(seed)
    judge = Judge(config.width)
    judge.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are faster in this layout

    def loss_of(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(training), (config.batch,), generator=generator).numpy()
        pixels = augment(to_pixels(training.images[rows]), generator).to(device)
        labels = torch.from_numpy(training.labels[rows]).to(device)
        return {"loss": F.cross_entropy(judge(pixels), labels, label_smoothing=0.1)}

    figures = train("judge", judge, loss_of, config, folder=folder, seed=seed)
    predicted, _ = look(judge, held_out.images)
    figures["accuracy"] = float((predicted == held_out.labels).mean())
    return judge, figures


@torch.inference_mode()
def look(judge: Judge, images: np.ndarray, batch: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """(predicted classes (N,), features (N, D)) of images (N, H, W, 3) uint8."""
    judge.eval()
    parts = np.array_split(images, max(1, len(images) // batch))
    device = judge.head.weight.device
    features = torch.cat([judge.features(to_pixels(part).to(device)) for part in parts])
    return judge.head(features).argmax(1).cpu().numpy(), features.cpu().numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features (N, D)."""
    mean_a, mean_b = a.mean(0), b.mean(0)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.trace(sqrtm(cov_a @ cov_b).real)  # rounding alone gives the root an imaginary part
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
