"""The reference experiments. `python experiments/run.py NAME …` runs those named, without a name all of them.

Each writes into its own folder of nbs/experiments/results: what is there already is not trained again, so that it can be
stopped at any time, and takes up more seeds with `--seeds`. Results of version 0.1 are called for again, but not added to.
"""
import argparse
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from fastai.callback import schedule  # noqa: F401 (gives Learner its fit_one_cycle)
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam
from fastprogress import fastprogress
from torch import nn

root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root), str(root/'experiments')]

from data import cifar, clothing, crop_and_flip, fashion, loaders, per_class, split  # noqa: E402
from league import league, results  # noqa: E402
from models import accuracy_on, keras_cnn, mlp, resnet18, resnet20, right, small_cnn  # noqa: E402

from fastmix.all import CutMix, MixChoice, MixUp  # noqa: E402, after the path to it
from fastmix.compare.run import compare  # noqa: E402
from fastmix.data import wrong_labels  # noqa: E402

keras_adam = partial(Adam, sqr_mom=.999, eps=1e-7, wd=0.)
four_arms = {'none': None, 'MixUp': MixUp(.2), 'CutMix': CutMix(1.), 'MixChoice': MixChoice(MixUp(.2), CutMix(1.))}


def attacked(model, images, classes, step):
    "Every pixel moved by `step` in the direction that raises the loss: FGSM (arXiv 1412.6572)"
    images = images.clone().requires_grad_()
    gradient, = torch.autograd.grad(F.cross_entropy(model(images), classes), images)
    return (images + step*gradient.sign()).clamp(0, 1).detach()


def test_scores(learn, test, steps=(1, 2, 4, 8), n_attacked=2000):
    "Accuracy on the test images, and on the first of them under attack; a step of 1 is 1/255 of the range"
    model, (images, classes) = learn.model.eval(), test
    scores = accuracy_on(model, images, classes)
    pairs = [(x.float()/255, y) for x, y in zip(images[:n_attacked].split(250), classes[:n_attacked].split(250))]
    for step in steps:
        scores[f'fgsm_{step}'] = torch.cat([right(model, attacked(model, x, y, step/255), y) for x, y in pairs]).float().mean()
    return scores


def learner(dls, make_model, opt_func=keras_adam): return Learner(dls, make_model(), loss_func=nn.CrossEntropyLoss(), opt_func=opt_func, metrics=accuracy)


def run(name, make_learner, arms, fit, seeds, test=None, first=0, jobs=1, **settings):
    "One comparison in its own folder, from the seed `first`; `jobs` runs at once"
    print(f'== {name}', flush=True)
    compare(make_learner, arms, fit, seeds, first, results/name, settings, test and partial(test_scores, test=test), jobs=jobs)


def fashion_mnist(seeds):
    "Keras's mixup example: a small network, ten epochs"
    train, valid = split(*fashion('train'), 2000)
    dls = loaders(train, valid)
    run('fashion', lambda: learner(dls, keras_cnn), four_arms, lambda learn: learn.fit(10, 1e-3), seeds, fashion('t10k'))


def few_labels(seeds):
    "The same network on few images per class, drawn anew for each seed; 20 epochs of about 6,000 samples each"
    images, valid = split(*fashion('train'), 2000)
    for n in (10, 30, 100, 300):
        def make_learner(): return learner(loaders(per_class(*images, n, torch.initial_seed()), valid, passes=6000 // (10*n)), keras_cnn)
        run(f'few-fashion-{n}', make_learner, four_arms, lambda learn: learn.fit(20, 1e-3), seeds, fashion('t10k'), per_class=n)


def few_photos(seeds):
    "Photographs of clothes at 32×32, 30 epochs of about 3,000 samples each (2,250 with 300 per class), with crops and flips; a class may have fewer photos than wanted"
    photos, test = clothing('train'), clothing('validation', 'test')
    for n in (10, 30, 100, 300):
        def make_learner():
            chosen = per_class(*photos, n, torch.initial_seed())
            return learner(loaders(chosen, test, augment=crop_and_flip, passes=max(1, round(3000/len(chosen[0])))), small_cnn, Adam)
        run(f'few-clothing-{n}', make_learner, four_arms, lambda learn: learn.fit_one_cycle(30, 3e-3), seeds, test, per_class=n)


def wrong(seeds):
    "A network that can learn by heart, on 10,000 images of which some have wrong labels, drawn anew for each seed; validated on clean test images"
    (images, classes), _ = split(*fashion('train'), 50000)
    arms = {'none': None, 'MixUp': MixUp(1.), 'MixUp 8': MixUp(8.), 'CutMix': CutMix(1.)}
    for share in (.2, .5, .8):
        def make_learner(): return learner(loaders((images, torch.from_numpy(wrong_labels(classes, share, torch.initial_seed(), 10))), fashion('t10k')), mlp)
        run(f'wrong-fashion-{100*share:.0f}', make_learner, arms, lambda learn: learn.fit(40, 1e-3), seeds, wrong=share)


def cifar_keras(seeds):
    "Keras's CutMix example: ResNet-20, 15 epochs, L2 on the weights; validated on the test images, of which nothing is chosen"
    l2_adam = partial(Adam, sqr_mom=.999, eps=1e-7, wd=2e-4, decouple_wd=False)
    dls = loaders(cifar('train'), cifar('test'), bs=32)
    run('cifar-keras', lambda: learner(dls, resnet20, l2_adam),
        {'none': None, 'CutMix': CutMix(.25, per='sample')}, lambda learn: learn.fit(15, 1e-3), seeds, cifar('test'), precision='bfloat16')


def cifar_schedule(seeds):
    "The same network and epochs with one cycle, crops and flips. Version 0.1 left two seeds of none and CutMix, and one of MixUp; the later ones have a folder of their own"
    def make_learner(): return learner(loaders(cifar('train'), cifar('test'), bs=128, augment=crop_and_flip), resnet20, Adam)
    for first, arms in [(2, {'none': None, 'CutMix': CutMix(.25, per='sample')}), (1, {'MixUp': MixUp(.2)})]:
        if seeds > first: run('cifar-schedule-new', make_learner, arms, lambda learn: learn.fit_one_cycle(15, 1e-2), seeds - first, cifar('test'), first, None, precision='bfloat16')


def cifar_long(seeds, device='cuda', epochs=30, arms=None):
    "A ResNet-18 for longer, with the data on the GPU: batches of 512, one cycle, crops and flips; OpenMixup's alphas"
    if device == 'cuda' and not torch.cuda.is_available():
        print('== cifar-long is passed over: it needs a GPU')
        return
    train, test = ([tensor.to(device) for tensor in cifar(part)] for part in ('train', 'test'))
    sgd = partial(SGD, mom=.9, wd=5e-4, decouple_wd=False)
    all_arms = {'none': None, 'MixUp': MixUp(1.), 'CutMix': CutMix(.2), 'MixChoice': MixChoice(MixUp(1.), CutMix(.2))}
    run('cifar-long', lambda: learner(loaders(train, test, bs=512, augment=crop_and_flip), resnet18, sgd), {arm: all_arms[arm] for arm in arms or all_arms},
        lambda learn: learn.fit_one_cycle(epochs, .4), seeds, test, precision='bfloat16', device=torch.cuda.get_device_name() if device == 'cuda' else device)


experiments = dict(fashion=fashion_mnist, few=few_labels, few_photos=few_photos, wrong=wrong, cifar_keras=cifar_keras, cifar_schedule=cifar_schedule,
                   cifar_long=cifar_long, league=league)
default_seeds = dict(fashion=5, cifar_long=1)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f"of {', '.join(experiments)}")
    parser.add_argument('--seeds', type=int, help='per arm (default: 5 for fashion, 1 for cifar_long, else 3; the league has its own)')
    parser.add_argument('--threads', type=int, default=1, help='of torch (default: 1)')
    parser.add_argument('--jobs', type=int, help='runs of the league at once (default: one for each core)')
    parser.add_argument('--until', type=int, default=2, choices=[1, 2], help='the stage after which the league ends (default: 2)')
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in experiments]
    if unknown: parser.error(f'unknown experiment {unknown[0]}: choose from {", ".join(experiments)}')
    torch.set_num_threads(given.threads)
    fastprogress.NO_BAR = not sys.stdout.isatty()
    for name in given.names or experiments:
        if name == 'league': league(given.jobs, given.until)
        else: experiments[name](given.seeds or default_seeds.get(name, 3))
