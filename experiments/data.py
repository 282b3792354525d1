"""The data of the experiments, whole in memory, from the folder that the variable FASTMIX_DATA names."""
import gzip
import io
import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from PIL import Image

from fastmix.data import few_per_class
from torch.utils.data import TensorDataset


def folder(name):
    "The folder of one data set"
    root = os.environ.get('FASTMIX_DATA')
    if not root: sys.exit('FASTMIX_DATA must name the folder that holds the data sets')
    path = Path(root)/name
    if not path.is_dir(): sys.exit(f'{path} is missing')
    return path


def fashion(part):
    "Fashion-MNIST, `part` train or t10k: images `(n, 1, 28, 28)` in 0..255, classes `(n,)`"
    def read(kind, header):
        with gzip.open(folder('fashion-mnist')/f'{part}-{kind}-ubyte.gz') as file: return np.frombuffer(file.read(), np.uint8, offset=header).copy()
    return torch.from_numpy(read('images-idx3', 16)).view(-1, 1, 28, 28), torch.from_numpy(read('labels-idx1', 8)).long()


@cache
def cifar(part):
    "CIFAR-10 in its JPEG copy, `part` train or test: images `(n, 3, 32, 32)` in 0..255, classes `(n,)`"
    packed = np.load(folder('cifar10')/'cifar10_jpeg_packed.npz')
    content, ends = packed[f'jpeg_{part}'], packed[f'offsets_{part}']
    images = [np.asarray(Image.open(io.BytesIO(content[a:b].tobytes())).convert('RGB')) for a, b in zip(ends, ends[1:])]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(packed[f'y_{part}']).long()


def clothing(*parts, size=32):
    "The clothing photographs of `parts`, of train, validation and test: images `(n, 3, size, size)` in 0..255, classes `(n,)`"
    paths = [path for part in parts for path in sorted((folder('clothing-small-160')/part).rglob('*.jpg'))]
    names = sorted(path.name for path in (folder('clothing-small-160')/'train').iterdir())
    images = [np.asarray(Image.open(path).convert('RGB').resize((size, size), Image.Resampling.LANCZOS)) for path in paths]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor([names.index(path.parent.name) for path in paths])


def split(images, classes, n_valid, seed=0):
    "Training and validation part, drawn once for all arms and seeds"
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(classes)))
    train, valid = order[n_valid:], order[:n_valid]
    return (images[train], classes[train]), (images[valid], classes[valid])


def per_class(images, classes, n, seed):
    "The first `n` samples of every class in an order that `seed` shuffles, or all where there are fewer"
    chosen = torch.from_numpy(few_per_class(classes, n, seed))
    return images[chosen], classes[chosen]


def crop_and_flip(x):
    "Every image moved by up to four pixels, and half of them mirrored; drawn from torch's global generator"
    n, size, device = len(x), x.shape[-1], x.device
    padded, shift = F.pad(x, [4]*4), torch.randint(0, 9, (2, n, 1), device=device)
    rows, columns = shift + torch.arange(size, device=device)
    columns = torch.where(torch.rand(n, 1, device=device) < .5, columns.flip(1), columns)
    return padded[torch.arange(n, device=device)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class MemoryLoader(DataLoader):
    "Takes whole batches out of tensors, in the order that fastai's `DataLoader` draws; `passes` times through them is an epoch"
    def __init__(self, images, classes, bs=64, shuffle=False, augment=None, passes=1):
        self.images, self.classes, self.augment, self.passes = images, classes, augment, passes
        super().__init__(TensorDataset(images, classes), bs=bs, shuffle=shuffle, drop_last=shuffle, num_workers=0, n=len(images)*passes)

    def create_batches(self, samples):
        for batch in self.chunkify(iter(samples)):
            index = torch.as_tensor(batch, device=self.images.device) % len(self.images)
            x = self.images[index].float().div_(255)
            yield self.augment(x) if self.augment else x, self.classes[index]


def loaders(train, valid, bs=64, **kwargs):
    "`DataLoaders` of images in 0..1, on the device that holds them; `kwargs` are for training"
    return DataLoaders(MemoryLoader(*train, bs=bs, shuffle=True, **kwargs), MemoryLoader(*valid, bs=250), device=train[0].device)


def pets(size=64, breeds=('Abyssinian', 'Bengal', 'american_bulldog')):
    "The pets of the breeds that are complete: images `(n, 3, size, size)` in 0..255, masks `(n, size, size)` of 0 background, 1 pet, 2 the border between; breeds `(n,)`"
    root, squeezed = folder('oxford-pets-160'), (size, size)
    paths = [path for breed in breeds for path in sorted((root/'images').glob(f'{breed}_*.jpg'))]
    images = [np.asarray(Image.open(path).convert('RGB').resize(squeezed, Image.Resampling.LANCZOS)) for path in paths]
    masks = [np.asarray(Image.open(root/'trimaps'/f'{path.stem}.png').resize(squeezed, Image.Resampling.NEAREST)) for path in paths]
    number_of = torch.tensor([3, 1, 0, 2]) # A trimap has 1 for the pet, 2 for the background, 3 for the border
    return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), number_of[torch.from_numpy(np.stack(masks)).long()],
            torch.tensor([breeds.index(path.stem.rsplit('_', 1)[0]) for path in paths]))


class PairLoader(MemoryLoader):
    "The same for images with masks; where it shuffles, it mirrors half of them, both alike"
    def create_batches(self, samples):
        for x, y in super().create_batches(samples):
            mirrored = torch.rand(len(x), 1, 1) < (.5 if self.shuffle else 0.)
            yield torch.where(mirrored[:, None], x.flip(-1), x), torch.where(mirrored, y.flip(-1), y)
