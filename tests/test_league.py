"The league: its settings, what is stored of it, what stage 1 has named, and a step of each of its trainings"
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastcore.nbio import read_nb

root = Path(__file__).parent.parent
sys.path += [str(root/'experiments')]

import league  # noqa: E402, after the path to it

from fastmix.all import AugMix, all_mixers  # noqa: E402
from fastmix.compare.arm import arm_learner, as_text  # noqa: E402
from fastmix.compare.images import is_for_photos  # noqa: E402
from fastmix.compare.results import read_results  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore:The given NumPy array is not writable')
stored = [f'league-{data}' for data in league.arms] + [f'league-{data}-new' for data in league.chosen_from]


def runs(folder): return read_results(league.results/folder)


# ---- the settings

@pytest.mark.parametrize('data', league.arms)
def test_each_method_has_an_arm_or_a_reason(data):
    every, here, without = {cls.__name__ for cls in [*all_mixers.values(), AugMix]}, {*league.arms[data]} - {'none', 'CutMix sides'}, {*league.left_out[data]}
    assert here | without == every and not here & without and all(league.left_out[data].values())


@pytest.mark.parametrize('data', ['photos', 'wrong'])
def test_photographs_have_what_the_command_holds_to_be_for_photographs(data):
    assert {*league.arms[data]} - {'none'} == {cls.__name__ for cls in all_mixers.values() if is_for_photos(cls)} - {'Remix'}


@pytest.mark.parametrize('data, arm, alpha', [('photos', 'MixUp', 1), ('wrong', 'MixUp', 8), ('masks', 'MixUp', .4), ('diabetes', 'MixUp', .4), ('adult', 'MixUp', .4),
                                              ('photos', 'CutMix', 1), ('photos', 'ManifoldMixUp', 2), ('diabetes', 'CMixUp', 2), ('adult', 'Remix', 1)])
def test_alphas(data, arm, alpha): assert league.arms[data][arm].alpha == alpha


@pytest.mark.parametrize('folder', stored)
def test_what_is_stored_was_made_with_these_settings(folder):
    results, (_, data, *new) = runs(folder), folder.split('-')
    first, n = league.seeds[2 if new else 1 if data in league.chosen_from else 'table']
    arms = [*league.in_any_case, *league.named()[data]] if new else [*league.arms[data]]
    assert [*dict.fromkeys(results.runs.arm)] == arms and (results.runs.status == 'finished').all()
    assert results.runs.groupby('arm').seed.apply(sorted).map(lambda seeds: seeds == [*range(first, first + n)]).all()
    for arm in arms:
        mixer = league.arms[data][arm]
        assert results.made_of[arm]['callbacks'] == as_text([] if mixer is None else [mixer])
    assert league.metrics[data] in results.measures and not results.looks


# ---- the two stages

@pytest.mark.parametrize('data', league.chosen_from)
def test_the_names_are_those_that_stage_1_gives(data):
    "Read from the CSV without the package"
    table = pd.read_csv(league.results/f'league-{data}'/'results.csv')
    means = table.groupby('arm')[league.metrics[data]].mean().drop(['none', 'MixUp', 'CutMix', 'MixChoice'])
    assert [*means.sort_values(ascending=False).index[:3]] == league.named()[data] == league.best_of(data)


@pytest.mark.parametrize('data', league.chosen_from)
def test_stage_2_has_none_of_the_seeds_of_stage_1(data):
    assert not {*runs(f'league-{data}').runs.seed} & {*runs(f'league-{data}-new').runs.seed}


def test_names_come_from_whole_stages_alone(tmp_path, monkeypatch):
    table = runs('league-wrong')
    (tmp_path/'league-wrong').mkdir()
    for name, text in {'results.csv': table.runs[:-1].to_csv(index=False), 'curves.csv': table.curves.to_csv(index=False), 'settings.json': '{}'}.items():
        (tmp_path/'league-wrong'/name).write_text(text)
    monkeypatch.setattr(league, 'results', tmp_path)
    with pytest.raises(AssertionError, match='not all runs'): league.best_of('wrong')


# ---- the page

def test_the_page_needs_no_data(monkeypatch):
    monkeypatch.delenv('FASTMIX_DATA', raising=False)
    import standings
    assert [*standings.table(1).columns] == [*standings.titles.values()] and len(standings.table(2).columns) == len(league.chosen_from)
    ax = standings.picture()
    assert [label.get_text() for label in ax.get_yticklabels()] == standings.methods()
    standings.plt.close()


def test_a_gain_is_the_mean_of_the_pairs():
    import standings
    for data in league.arms:
        table = standings.judges(data).runs.pivot(index='seed', columns='arm', values=league.metrics[data])
        for arm, (row, judged) in standings.gains(data).items():
            if judged: assert row['difference'] == pytest.approx((table[arm] - table['none']).mean(), abs=1e-9)


def test_another_arm_can_be_what_all_are_compared_with():
    import standings
    table = standings.stage('photos', 2).runs.pivot(index='seed', columns='arm', values=league.metrics['photos'])
    rows = standings.against_cutmix('photos')
    assert {*rows} == {*table} - {'CutMix'}
    for arm, row in rows.items(): assert row['difference'] == pytest.approx((table[arm] - table['CutMix']).mean(), abs=1e-9)


def test_the_page_tells_the_settings():
    prose = ' '.join(cell.source for cell in read_nb(root/'nbs/experiments/league.ipynb').cells if cell.cell_type == 'markdown')
    for text in ('30 photographs', '2,000 images', '20 %', '48×48', '442', '2,000 rows', 'three seeds', 'four new seeds', 'ten seeds', '30 epochs', '40 epochs', '20 epochs', '10 epochs'):
        assert text in prose, text


# ---- a step of each training

@pytest.fixture
def few_photographs(data, tmp_path, monkeypatch):
    "A folder of data with seven photographs per class, and the rest as it is"
    for part, n in dict(train=7, validation=2, test=2).items():
        for photos in (data/'clothing-small-160'/part).iterdir():
            (tmp_path/'clothing-small-160'/part/photos.name).mkdir(parents=True)
            for photo in sorted(photos.glob('*.jpg'))[:n]: (tmp_path/'clothing-small-160'/part/photos.name/photo.name).symlink_to(photo)
    monkeypatch.setenv('FASTMIX_DATA', str(tmp_path))
    league.photos.cache_clear()
    yield
    league.photos.cache_clear()


def step(data, **small):
    "One epoch of each arm on little data; the score of the first"
    make_learner, score = (getattr(league, f'{data}_{part}') for part in ('learner', 'score'))
    for arm, mixer in league.arms[data].items():
        learn = arm_learner(lambda: make_learner(**small), mixer, 7)
        learn.dls.valid = [learn.dls.valid.one_batch()]
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        assert len(learn.recorder.losses) and torch.stack(learn.recorder.losses).isfinite().all(), arm
    return score(arm_learner(lambda: make_learner(**small), None, 7))


def test_photos(few_photographs): assert 0 <= step('photos', n=7, passes=1)['test_accuracy'] <= 1
def test_wrong(data): assert 0 <= step('wrong', n=64)['test_accuracy'] <= 1
def test_masks(data): assert all(0 <= value <= 1 for value in step('masks', n=6).values())
def test_adult(data): assert 0 <= step('adult', n=128, n_test=300)['test_accuracy'] <= 1
def test_diabetes(): assert step('diabetes')['test_r2'] < 1


def test_each_seed_has_data_of_its_own():
    first, again, other = (league.patients().sample(frac=1, random_state=seed).index[:5].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_wrong_labels_are_a_fifth(data):
    images, classes, _ = league.fashions()
    learn = arm_learner(league.wrong_learner, None, 3)
    assert len(images) == 2000 and (learn.dls.train.classes != classes).float().mean() == pytest.approx(.2, abs=.001)


def test_borders_count_for_nothing(data):
    images, masks, breeds = league.all_pets()
    assert len(images) == 600 and breeds.bincount().tolist() == [200]*3 and masks.unique().tolist() == [0, 1, 2]
    (train, _), (test, _) = league.pets_parts(100)
    assert (len(train), len(test)) == (300, 150)
    learn = arm_learner(league.masks_learner, None, 3)
    assert learn.loss_func.func.ignore_index == 2
