"""The league: every method that the data allows, on five small data sets. All that is set here was set before the first run.

Stage 1 trains all methods from three seeds, to choose. Stage 2 trains none, MixUp, CutMix, their choice, and the three that
stage 1 names, from four new seeds, to judge. The tables have few methods and are quick: one stage of ten seeds judges all.
"""
import json
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from data import PairLoader, clothing, crop_and_flip, fashion, folder, loaders, per_class, pets, split
from fastai.callback import schedule  # noqa: F401 (gives Learner its fit_one_cycle)
from fastai.data.block import CategoryBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy, mae
from fastai.optimizer import Adam
from fastai.tabular.core import Categorify, FillMissing, Normalize, TabularPandas
from fastai.tabular.learner import tabular_learner
from models import SmallUNet, accuracy_on, mlp, small_resnet
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score
from torch import nn

from fastmix.all import (CMixUp, CopyPaste, CutMix, FMix, GMix, GuidedMixUp, HMix, ManifoldMixUp, MixChoice, MixUp, PatchMix, Remix, ResizeMix, RICAP,
                         SaliencyMix, SpecMix, TabularSwap)
from fastmix.compare.results import read_results
from fastmix.compare.run import compare
from fastmix.data import wrong_labels

results = Path(__file__).resolve().parent.parent/'nbs/experiments/results'


def for_images(mixup, **more):
    "No mixing, MixUp as given, CutMix, their choice, and the methods for images at their defaults, which are their papers'"
    return {'none': None, 'MixUp': mixup, 'CutMix': CutMix(1.), 'MixChoice': MixChoice(mixup, CutMix(1.)),
            'ResizeMix': ResizeMix(), 'HMix': HMix(), 'GMix': GMix(), 'FMix': FMix(), 'PatchMix': PatchMix(), 'SpecMix': SpecMix(),
            'SaliencyMix': SaliencyMix(), 'GuidedMixUp': GuidedMixUp(), 'RICAP': RICAP()} | more


def for_tables(**more):
    "No mixing, and what goes for every table. MixUp's paper gives no alpha for tables, so it is the default here, .4"
    return {'none': None, 'MixUp': MixUp(), 'ManifoldMixUp': ManifoldMixUp(['layers', 'layers.1', 'layers.2']), 'TabularSwap': TabularSwap()} | more


arms = {
    # MixUp's paper has alpha 1 for small images (its ImageNet .1 to .4), Manifold Mixup's 2 at the input or behind one of the first two stages
    'photos': for_images(MixUp(1.), ManifoldMixUp=ManifoldMixUp(['input', '4', '5'])),
    # For wrong labels it has 8 (its section 3.4)
    'wrong': for_images(MixUp(8.), ManifoldMixUp=ManifoldMixUp(['input', '3', '5'])),
    # For masks it has none, so MixUp stands at its default, .4. A pet is pasted with its border, which counts for nothing in the loss
    'masks': for_images(MixUp(), **{'CutMix sides': CutMix(sides=(.2, .8)), 'CopyPaste': CopyPaste(classes=[1, 2], share=1.)}),
    'diabetes': for_tables(CMixUp=CMixUp()),
    'adult': for_tables(Remix=Remix()),
}
in_any_case = 'none', 'MixUp', 'CutMix', 'MixChoice' # of stage 2
metrics = dict(photos='test_accuracy', wrong='test_accuracy', masks='test_iou', diabetes='test_r2', adult='test_accuracy')
chosen_from = 'photos', 'wrong', 'masks' # have two stages
seeds = {1: (0, 3), 2: (3, 4), 'table': (0, 10)} # The first one, and how many
read_together = 11 # Comparisons with none in both stages and the tables, and with CutMix in stage 2: each gets its part of the 5 %

# Why a method of `fastmix.all` has no arm
slow = 'makes two views more of every image, one by one: an epoch took {} times as long, tried before the league; it mixes no samples with each other'
left_out = {
    'photos': dict(Remix="is for classes of different size; with 30 photographs of each it's MixUp", CMixUp='is for numbers to predict', CopyPaste='is for masks',
                   TabularSwap='is for tables', TransMix="takes a vision transformer's attention", AugMix=slow.format('six')),
    'wrong': dict(Remix="is for classes of different size; these are so nearly of the same that it's MixUp", CMixUp='is for numbers to predict', CopyPaste='is for masks',
                  TabularSwap='is for tables', TransMix="takes a vision transformer's attention", AugMix=slow.format('more than ten')),
    'masks': dict(ManifoldMixUp="mixes one layer's input, and the bridges of a U-Net carry the own image past it", Remix='is for one class per image',
                  CMixUp='is for numbers to predict', TabularSwap='is for tables', TransMix='is for one class per image', AugMix='is for one class per image'),
    'diabetes': dict.fromkeys(['CutMix', 'ResizeMix', 'HMix', 'GMix', 'FMix', 'PatchMix', 'SpecMix', 'SaliencyMix', 'GuidedMixUp', 'RICAP', 'CopyPaste', 'TransMix',
                               'AugMix'], 'is for what has places: images, some for signals') | dict(Remix='is for classes', MixChoice='draws MixUp or CutMix here'),
}
left_out['adult'] = {method: why for method, why in left_out['diabetes'].items() if method != 'Remix'} | dict(CMixUp='is for numbers to predict')


# Photographs of clothes

def photos_learner(n=30, passes=3):
    "Photographs at 48×48, `n` per class, drawn anew for each seed; crops and flips"
    chosen, (test, classes) = per_class(*photos('train'), n, torch.initial_seed()), photos('validation', 'test')
    dls = loaders(chosen, (test[::3], classes[::3]), augment=crop_and_flip, passes=passes)
    return Learner(dls, small_resnet(), loss_func=nn.CrossEntropyLoss(), opt_func=Adam, metrics=accuracy)

@cache
def photos(*parts): return clothing(*parts, size=48)

def photos_fit(learn): learn.fit_one_cycle(30, 3e-3)

def photos_score(learn): return accuracy_on(learn.model, *photos('validation', 'test'))


# Fashion-MNIST with wrong labels

@cache
def fashions():
    (images, classes), _ = split(*fashion('train'), 58000)
    return images, classes, fashion('t10k')

def wrong_learner(n=2000):
    "2,000 images, the same for each seed, of which 20 % have a wrong label, drawn anew for each seed"
    images, classes, (test, right) = fashions()
    wrong = torch.from_numpy(wrong_labels(classes, .2, torch.initial_seed(), 10))
    return Learner(loaders((images[:n], wrong[:n]), (test[::10], right[::10])), mlp(), loss_func=nn.CrossEntropyLoss(), opt_func=Adam, metrics=accuracy)

def wrong_fit(learn): learn.fit(40, 1e-3)

def wrong_score(learn): return accuracy_on(learn.model, *fashions()[2])


# Pets and their outlines

@cache
def all_pets(): return pets(48)

border = 2

def pixel_accuracy(pred, mask): return (pred.argmax(1) == mask)[mask != border].float().mean()

def pets_parts(n):
    "`n` images per breed to train on, drawn by the seed out of the 150 that are not for the test, and the 150 that are"
    images, masks, breeds = all_pets()
    (rest, rest_breeds), (test, _) = split(torch.arange(len(breeds)), breeds, 150)
    chosen, _ = per_class(rest, rest_breeds, n, torch.initial_seed())
    return [(images[part], masks[part]) for part in (chosen, test)]

def masks_learner(n=100):
    train, test = pets_parts(n)
    dls = DataLoaders(PairLoader(*train, bs=16, shuffle=True), PairLoader(*test, bs=50))
    return Learner(dls, SmallUNet(), loss_func=CrossEntropyLossFlat(axis=1, ignore_index=border), opt_func=Adam,
                   metrics=pixel_accuracy)

def masks_fit(learn): learn.fit_one_cycle(20, 1e-2)

def masks_score(learn):
    "Intersection over union of pet and background over all test images, the border left out: their mean, and the pet's"
    model, (images, mask) = learn.model.eval(), pets_parts(1)[1]
    with torch.no_grad(): pred = torch.cat([model(x.float()/255).argmax(1) for x in images.split(50)])
    pred, mask = pred[mask != border], mask[mask != border]
    iou = [((pred == c) & (mask == c)).sum()/((pred == c) | (mask == c)).sum() for c in (0, 1)]
    return {'test_iou': sum(iou)/2, 'test_iou_pet': iou[1]}


# Tables

def table_learner(train, test, y, **kwargs):
    "A table whose target is the last column: what is text are categories, as in fastai's own tables"
    table, names = pd.concat([train, test], ignore_index=True), train.columns.drop(y)
    texts = [name for name in names if train[name].dtype.kind not in 'if']
    block = RegressionBlock() if train[y].dtype.kind == 'f' else CategoryBlock()
    splits = list(range(len(train))), list(range(len(train), len(table)))
    data = TabularPandas(table, [Categorify, FillMissing, Normalize], texts, [name for name in names if name not in texts], y, block, splits)
    return tabular_learner(data.dataloaders(bs=64, val_bs=1000, num_workers=0), opt_func=Adam, **kwargs)

@cache
def patients():
    table = load_diabetes(as_frame=True, scaled=False).frame
    return table.assign(sex=table.sex.map({1.: 'one', 2.: 'two'}).astype(object))

def diabetes_learner(n_test=112):
    "All 442 people, divided anew for each seed; the course of the disease in standard deviations of those to train on"
    table = patients().sample(frac=1, random_state=torch.initial_seed())
    mean, sd = table.target[n_test:].mean(), table.target[n_test:].std()
    table = table.assign(target=((table.target - mean)/sd).astype('float32'))
    return table_learner(table[n_test:], table[:n_test], 'target', metrics=mae)

def diabetes_fit(learn): learn.fit_one_cycle(20, 1e-3)

def diabetes_score(learn):
    "Share of the test people's variance that is explained"
    pred, target = learn.get_preds()
    return {'test_r2': r2_score(target, pred)}

@cache
def citizens(): return pd.read_csv(folder('adult')/'adult.csv', skipinitialspace=True).sample(frac=1, random_state=0)

def adult_learner(n=2000, n_test=10000):
    "2,000 rows, drawn anew for each seed out of those that are not for the test"
    table = citizens()
    return table_learner(table[n_test:].sample(n, random_state=torch.initial_seed()), table[:n_test], 'salary', metrics=accuracy)

def adult_fit(learn): learn.fit_one_cycle(10, 3e-3)

def adult_score(learn):
    pred, target = learn.get_preds()
    return {'test_accuracy': (pred.argmax(1) == target.flatten()).float().mean()}


# The stages

def run(data, stage, jobs, names=None):
    "One comparison in its own folder; `jobs` runs at once"
    folder, (first, n) = f'league-{data}' + '-new'*(stage == 2), seeds[stage if data in chosen_from else 'table']
    print(f'== {folder}', flush=True)
    make_learner, fit, score = (globals()[f'{data}_{part}'] for part in ('learner', 'fit', 'score'))
    here = {arm: arms[data][arm] for arm in names or arms[data]}
    return compare(make_learner, here, fit, n, first, results/folder, dict(data=data, stage=stage), score, jobs=jobs)


def best_of(data):
    "The three arms beside those of stage 2 in any case that have the highest mean in stage 1, best first"
    table = read_results(results/f'league-{data}').table(metrics[data])
    assert (table.seeds == seeds[1][1]).all(), f'{data}: not all runs of stage 1 have finished'
    return [*table[metrics[data]].drop([*in_any_case]).sort_values(ascending=False, kind='stable').index[:3]]


def named():
    "What stage 1 has named, as it was written down before stage 2, or nothing"
    file = results/'league-named.json'
    return json.loads(file.read_text()) if file.exists() else {}


def league(jobs, until=2):
    "Stage 1, the names that it gives, and stage 2, as far as they are not there"
    for data in arms: run(data, 1, jobs)
    if not named(): (results/'league-named.json').write_text(json.dumps({data: best_of(data) for data in chosen_from}, indent=2) + '\n')
    for data in chosen_from if until > 1 else (): run(data, 2, jobs, [*in_any_case, *named()[data]])
