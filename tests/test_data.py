from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastmix import data as data_module
from fastmix.data import (class_of, digit_images, few_per_class, find_splits, folder_images, get_images, image_dls, InputError, small_cnn, stratified_split, wrong_labels)


def save(path, colour=0, size=(24, 20), mode='RGB'):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def save_classes(folder, **counts):
    "`counts` images of each class, one folder per class"
    for label, n in counts.items():
        for i in range(n): save(folder/label/f'{i}.png')


def labels(pairs): return Counter(label for _, label in pairs)


@pytest.mark.parametrize('n, n_valid', [(2, 1), (5, 1), (10, 2), (13, 3)])
def test_split_holds_out_a_fifth_of_each_class(n, n_valid):
    pairs = [(i, label) for label in 'ab' for i in range(n)]
    train, valid = stratified_split(pairs)
    assert labels(valid) == dict(a=n_valid, b=n_valid)
    assert sorted(train + valid, key=lambda pair: pair[::-1]) == pairs


def test_split_depends_on_the_seed_only():
    pairs = [(i, 'a') for i in range(50)]
    assert stratified_split(pairs, seed=1) == stratified_split(pairs, seed=1)
    assert stratified_split(pairs, seed=1) != stratified_split(pairs, seed=2)


def test_digits():
    images = digit_images()
    assert len(images.train) + len(images.valid) == 1797
    assert images.n_channels == 1 and len(images.classes) == 10
    image, _ = images.train[0]
    assert image.shape == (8, 8) and image.dtype == np.uint8
    assert max(image.max() for image, _ in images.train) == 255


@pytest.mark.parametrize('path, label', [
    ('cat/1.jpg', 'cat'), ('cat/young/1.jpg', 'cat'), ('great_dane_12.jpg', 'great_dane'), ('a_1_2.jpg', 'a_1'),
    ('cover.jpg', None), ('12.jpg', None), ('_12.jpg', None)])
def test_class_of(path, label): assert class_of(Path(path)) == label


@pytest.mark.parametrize('paths, splits', [
    ('cat/1.jpg dog/1.jpg', {}),
    ('car/1.jpg train/1.jpg', {}),
    ('train/cat/1.jpg test/cat/1.jpg', dict(train='train', test='test')),
    ('train/cat/1.jpg test/1.jpg', dict(train='train', test='test')),
    ('Train/cat/1.jpg Val/cat/1.jpg', dict(Train='train', Val='valid')),
    ('train/cat_1.jpg validation/cat_2.jpg', dict(train='train', validation='valid')),
    ('cat/1.jpg dog/1.jpg test/cat/1.jpg', dict(test='test')),
    ('cat/young/1.jpg dog/1.jpg', {}),
    ('cat_1.jpg', {}),
])
def test_find_splits(paths, splits): assert find_splits([Path(o) for o in paths.split()]) == splits


def test_one_folder_per_class(tmp_path):
    save_classes(tmp_path, cat=10, dog=5)
    images = folder_images(tmp_path)
    assert labels(images.train) == dict(cat=8, dog=4) and labels(images.valid) == dict(cat=2, dog=1)
    assert (images.n_test, images.left_out, images.skipped) == (0, {}, {})


def test_flat_files(tmp_path):
    for i in range(6):
        save(tmp_path/f'great_dane_{i}.png')
        save(tmp_path/f'Ragdoll_{i}.png')
    save(tmp_path/'cover.png')
    images = folder_images(tmp_path)
    assert images.classes == ['Ragdoll', 'great_dane']
    assert images.skipped == {tmp_path/'cover.png': 'no class in its name'}


def test_a_given_split_is_kept(tmp_path):
    for split, n in dict(train=6, validation=2, test=3).items(): save_classes(tmp_path/split, cat=n, dog=n)
    images = folder_images(tmp_path)
    assert labels(images.train) == dict(cat=6, dog=6) and labels(images.valid) == dict(cat=2, dog=2)
    assert {path.parent.parent.name for path, _ in images.train} == {'train'}
    assert {path.parent.parent.name for path, _ in images.valid} == {'validation'}
    assert images.n_test == 6


def test_without_validation_the_training_images_are_split(tmp_path):
    save_classes(tmp_path/'train', cat=10, dog=10)
    save(tmp_path/'test'/'1.png')
    images = folder_images(tmp_path)
    assert (len(images.train), len(images.valid), images.n_test) == (16, 4, 1)
    assert not any('test' in path.parts[-3:] for path, _ in images.train + images.valid)


def test_small_classes_are_left_out_of_both_parts(tmp_path):
    save_classes(tmp_path/'train', cat=6, dog=6, rare=4)
    save_classes(tmp_path/'valid', cat=1, dog=1, rare=1, unknown=1)
    images = folder_images(tmp_path)
    assert images.left_out == dict(rare=4, unknown=0)
    assert set(labels(images.valid)) == {'cat', 'dog'}


def test_images_of_more_than_eight_bits_are_skipped(tmp_path):
    save_classes(tmp_path, cat=6, dog=6)
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path/'cat'/'deep.png')
    Image.fromarray(np.full((8, 8), .5, np.float32)).save(tmp_path/'dog'/'deep.tif')
    assert folder_images(tmp_path).skipped == {tmp_path/'cat'/'deep.png': 'more than 8 bits per channel', tmp_path/'dog'/'deep.tif': 'more than 8 bits per channel'}


def test_a_link_to_a_folder_above_adds_no_images(tmp_path):
    save_classes(tmp_path, cat=6, dog=6)
    (tmp_path/'cat'/'again').symlink_to(tmp_path, target_is_directory=True)
    images = folder_images(tmp_path)
    assert len(images.train) + len(images.valid) == 12 and images.skipped == {}
    assert not any('again' in path.parts for path, _ in images.train + images.valid)


def test_unreadable_images_are_skipped_and_do_not_count(tmp_path):
    save_classes(tmp_path, cat=6, dog=6, rare=5)
    (tmp_path/'cat'/'text.png').write_text('no image')
    truncated = tmp_path/'dog'/'truncated.jpg'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:900])
    (tmp_path/'rare'/'0.png').write_bytes(b'')
    images = folder_images(tmp_path)
    assert {path.name for path in images.skipped} == {'text.png', 'truncated.jpg', '0.png'}
    assert set(images.skipped.values()) == {'unreadable'}
    assert images.left_out == dict(rare=4)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match='no such folder'): folder_images(tmp_path/'missing')


def test_no_images(tmp_path):
    (tmp_path/'notes.txt').write_text('no images here')
    with pytest.raises(InputError, match='no images in .*expected one folder per class'): folder_images(tmp_path)


def test_a_single_class(tmp_path):
    save_classes(tmp_path, cat=6, rare=2)
    with pytest.raises(InputError, match='a single class of 5 or more .*1 classes of fewer, 0 files skipped'):
        folder_images(tmp_path)


def test_only_a_test_split(tmp_path):
    save_classes(tmp_path/'test', cat=6, dog=6)
    with pytest.raises(InputError, match='has no class of 5 or more'): folder_images(tmp_path)


def test_pets_are_downloaded_by_fastai(tmp_path, monkeypatch):
    for i in range(5):
        save(tmp_path/'images'/f'Ragdoll_{i}.png')
        save(tmp_path/'images'/f'beagle_{i}.png')
        save(tmp_path/'annotations'/f'beagle_{i}.png')
    monkeypatch.setattr(data_module, 'untar_data', lambda url: tmp_path)
    images = get_images('pets')
    assert labels(images.train + images.valid) == dict(Ragdoll=5, beagle=5)


def test_pets_without_a_network(monkeypatch):
    def untar_data(url): raise OSError('no route to host')
    monkeypatch.setattr(data_module, 'untar_data', untar_data)
    with pytest.raises(InputError, match='no route to host.*give the folder of a local copy'): get_images('pets')


def test_loaders_of_photographs(tmp_path):
    for label, colour in dict(dark=0, light=255).items():
        for i in range(10): save(tmp_path/label/f'{i}.png', colour=(colour,) * 3, size=(30 + i, 20))
    save(tmp_path/'light'/'grey.png', colour=255, mode='L')
    save(tmp_path/'dark'/'rgba.png', colour=(0, 0, 0, 9), mode='RGBA')
    dls = image_dls(get_images(tmp_path), size=16, bs=1000)
    assert list(dls.vocab) == ['dark', 'light']
    x, y = dls.one_batch()
    assert x.shape == (len(dls.train_ds), 3, 16, 16)
    assert (x.mean((1, 2, 3)) > 0).tolist() == (y == 1).tolist()


def test_digits_are_resized_where_asked_and_never_flipped():
    images = digit_images()
    assert image_dls(images, size=16).one_batch()[0].shape == (64, 1, 16, 16)
    pixels = {image.tobytes() for image, _ in images.train}
    x = image_dls(images, size=8).one_batch()[0]
    restored = ((torch.as_tensor(x) * 0.376 + 0.305) * 255).round().byte().numpy()
    assert all(image.tobytes() in pixels for image in restored)


@pytest.mark.parametrize('n_in, size', [(1, 8), (3, 32)])
def test_small_cnn(n_in, size): assert small_cnn(n_in, 7)(torch.zeros(2, n_in, size, size)).shape == (2, 7)


def test_clothing(data):
    images = get_images(data/'clothing-small-160')
    assert (len(images.train), len(images.valid), images.n_test) == (3068, 341, 372)
    assert len(images.classes) == 10 and not images.skipped and not images.left_out


def test_pets(data):
    images = get_images(data/'oxford-pets-160'/'images')
    assert {'Abyssinian', 'Bengal', 'american_bulldog'} <= set(images.classes)
    assert images.left_out['beagle'] == 1 and max(images.left_out.values()) == 4
    assert labels(images.valid)['Bengal'] == 40


# Fewer labels, and wrong ones

def test_few_of_each_class():
    labels = np.array(list('aaaaabbbc'))
    kept = few_per_class(labels, 2, seed=1)
    assert Counter(labels[kept]) == dict(a=2, b=2, c=1) and len({*kept}) == 5
    assert kept.tolist() == few_per_class(labels, 2, seed=1).tolist() and any(few_per_class(labels, 2, seed=s).tolist() != kept.tolist() for s in range(5))


@pytest.mark.parametrize('share', [0., .3, 1.])
def test_wrong_labels_are_another_class_each_equally_likely(share):
    labels = np.repeat(np.arange(4), 1000)
    wrong = wrong_labels(labels, share, seed=3)
    changed = wrong != labels
    assert changed.sum() == round(share*4000) and labels.tolist() == np.repeat(np.arange(4), 1000).tolist()
    steps = np.bincount((wrong - labels)[changed] % 4, minlength=4)
    if share: assert steps[0] == 0 and (abs(steps[1:] - changed.sum()/3) < 4.5*(changed.sum()*2/9)**.5 + 1).all()
    assert wrong_labels(labels[:5], .5, n_classes=9).max() <= 8


def test_the_images_to_validate_on_keep_their_labels():
    digits = digit_images(1)
    changed = digits.with_labels(per_class=20, wrong=.5, seed=1)
    assert changed.valid is digits.valid and len(changed.train) == 200 and changed.classes == digits.classes
    names = {image.tobytes(): label for image, label in digits.train}
    assert sum(names[image.tobytes()] != label for image, label in changed.train) == 100
    assert digits.with_labels().train == digits.train


def test_an_item_is_made_once_and_only_where_it_is_always_the_same():
    images = digit_images()
    dls = image_dls(images, size=8)
    for dl in dls: assert dl.do_item(3)[0] is dl.do_item(3)[0]
    first, again = dls.valid.one_batch()[0], dls.valid.one_batch()[0]
    assert torch.equal(first, again)
    first.zero_()
    assert torch.equal(dls.valid.one_batch()[0], again), 'what is written into a batch does not reach the kept items'
    fresh = dls.test_dl([images.train[0]])
    assert torch.equal(fresh.one_batch()[0][0], image_dls(images, size=8).train.do_item(0)[0].float().div(255).sub(0.305).div(0.376))
    resized = image_dls(images, size=16).train
    assert resized.do_item(3)[0] is not resized.do_item(3)[0]
