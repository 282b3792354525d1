"""The networks of the experiments, in the settings of their sources."""
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18 as imagenet_resnet18


def like_keras(model):
    "Glorot's uniform weights and zero biases, which Keras begins with"
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def keras_cnn(n_classes=10):
    "The network of Keras's mixup example, for grey images of 28×28"
    return like_keras(nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, n_classes)))


def mlp(n_classes=10):
    "Two hidden layers of 512 units on grey images of 28×28: enough to learn ten thousand labels by heart"
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, n_classes))


def small_cnn(n_classes=10):
    "Four strided convolutions, each with batch normalisation, for colour images of 32×32"
    widths = 3, 32, 64, 128, 256
    layers = [layer for n_in, n_out in zip(widths, widths[1:]) for layer in (nn.Conv2d(n_in, n_out, 3, 2, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, n_classes))


class Block(nn.Module):
    "Two 3×3 convolutions around which the input passes by"
    def __init__(self, n_in, n_out, stride=1):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1), nn.BatchNorm2d(n_out), nn.ReLU(),
                                   nn.Conv2d(n_out, n_out, 3, 1, 1), nn.BatchNorm2d(n_out))
        self.short = nn.Identity() if stride == 1 and n_in == n_out else nn.Conv2d(n_in, n_out, 1, stride)

    def forward(self, x): return torch.relu(self.convs(x) + self.short(x))


class LowPrecision(nn.Sequential):
    "Layers that calculate in bfloat16 where torch holds that to be safe, on CPU and GPU"
    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16): return super().forward(x).float()


def resnet20(n_classes=10):
    "The ResNet-20 of Keras's CutMix example, for colour images of 32×32"
    blocks = [Block(n_in, n_out, stride) for n_in, n_out, stride in
              [(16, 16, 1), (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1)]]
    model = LowPrecision(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, n_classes))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d): nn.init.kaiming_normal_(layer.weight)
        if isinstance(layer, (nn.Conv2d, nn.Linear)): nn.init.zeros_(layer.bias)
    return model.to(memory_format=torch.channels_last)


def resnet18(n_classes=10):
    "ResNet-18 in its form for images of 32×32: a first convolution of 3×3, and no pooling behind it"
    model = imagenet_resnet18(num_classes=n_classes)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return LowPrecision(model).to(memory_format=torch.channels_last)


def small_resnet(n_classes=10, width=16):
    "Three residual blocks of two convolutions each, behind one of stride 2, for colour images of about 48×48"
    model = LowPrecision(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                         Block(width, width), Block(width, 2*width, 2), Block(2*width, 4*width, 2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4*width, n_classes))
    return model.to(memory_format=torch.channels_last)


def layer(n_in, n_out, stride=1): return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


class SmallUNet(nn.Module):
    "Three steps down, three up, with a bridge at each size; in bfloat16 as `LowPrecision`"
    def __init__(self, n_out=2, width=8):
        super().__init__()
        widths = width, 2*width, 4*width, 8*width
        self.down = nn.ModuleList([layer(3, width), *(layer(n_in, n_out, 2) for n_in, n_out in zip(widths, widths[1:]))])
        self.up = nn.ModuleList([layer(n_in + n_out, n_out) for n_out, n_in in zip(widths[-2::-1], widths[:0:-1])])
        self.head = nn.Conv2d(width, n_out, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        bridges = []
        with torch.autocast(x.device.type, torch.bfloat16):
            for down in self.down: bridges.append(x := down(x))
            for up, bridge in zip(self.up, bridges[-2::-1]): x = up(torch.cat([F.interpolate(x, bridge.shape[2:]), bridge], 1))
            return self.head(x).float()


def right(model, images, classes): return model(images).argmax(1) == classes


def accuracy_on(model, images, classes):
    "`test_accuracy` of a model on all images, in 0..255; during training one may look at only some of them"
    model = model.eval()
    with torch.no_grad(): found = [right(model, x.float()/255, y) for x, y in zip(images.split(250), classes.split(250))]
    return {'test_accuracy': torch.cat(found).float().mean()}
