from functools import partial

import numpy as np
import pytest

from medseg.data.dataset import Case, DataFingerprint, Split, Volume, fold_of, hold_out, stack_slices
from medseg.errors import DataError


def volume(name: str, seed: int, spacing: tuple[float, float, float] | None = None) -> Volume:
    rng = np.random.default_rng(seed)
    image = rng.random((3, 1, 8, 9), dtype=np.float32)
    return Volume(name, image, rng.integers(0, 4, (3, 8, 9), dtype=np.uint8), spacing)


def case(name: str, patient: str | None = None) -> Case:
    return Case(name, patient or name, partial(volume, name, seed=0))


CASES = [case(f"patient{number:02}_{phase}", f"patient{number:02}") for number in range(10) for phase in ("ED", "ES")]


def patients(cases: list[Case]) -> set[str]:
    return {case.patient for case in cases}


class TestSplit:
    @pytest.mark.parametrize(
        ("train", "validation", "test", "message"),
        [
            ("ab", "c", "bd", "b is in train and in test; a patient belongs to one"),
            ("ab", "a", "d", "a is in train and in validation"),
            ("ab", "cd", "cd", "c, d is in validation and in test"),
            ("", "a", "b", "no case left for train; the data is too small"),
            ("a", "b", "", "no case left for test"),
            ("", "", "", "found no case; the data folder holds no file in the layout"),
        ],
    )
    def test_unsound(self, train: str, validation: str, test: str, message: str) -> None:
        parts = [[case(f"{part}{patient}", patient) for patient in part] for part in (train, validation, test)]
        with pytest.raises(DataError, match=message):
            Split("any", *parts)

    def test_without_validation(self) -> None:
        split = Split("any", CASES[:4], [], CASES[4:])
        assert split.parts() == {"train": CASES[:4], "validation": [], "test": CASES[4:]}

    def test_limited_says_so(self) -> None:
        split = Split("any", CASES[:4], CASES[4:6], CASES[6:]).limited(3)
        assert split == Split("any, LIMITED to 3 cases a part", CASES[:3], CASES[4:6], CASES[6:9])


class TestHoldOut:
    @pytest.mark.parametrize(("fraction", "held"), [(0.1, 1), (0.04, 1), (0.3, 3), (0.5, 5), (0.99, 9), (1.0, 9)])
    def test_share_of_the_patients(self, fraction: float, held: int) -> None:
        kept, out = hold_out(CASES, fraction, seed=0)
        assert (len(patients(kept)), len(patients(out))) == (10 - held, held)
        assert patients(kept).isdisjoint(patients(out))
        assert sorted([*kept, *out], key=CASES.index) == CASES
        assert kept == [case for case in CASES if case in kept]  # in the order given

    def test_nothing(self) -> None:
        assert hold_out(CASES, 0, seed=0) == (CASES, [])
        assert hold_out(CASES[:2], 0.5, seed=0) == (CASES[:2], [])  # of one patient

    def test_seed_decides_and_the_order_of_the_cases_does_not(self) -> None:
        chosen = [patients(hold_out(CASES, 0.3, seed)[1]) for seed in range(8)]
        assert patients(hold_out(CASES[::-1], 0.3, 0)[1]) == chosen[0]
        assert len(set(map(frozenset, chosen))) > 4


class TestFolds:
    @pytest.mark.parametrize("folds", [2, 3, 4, 10])
    def test_every_case_is_tested_once(self, folds: int) -> None:
        tested = []
        for fold in range(1, folds + 1):
            train, test = fold_of(CASES, fold, folds, seed=0)
            assert patients(train).isdisjoint(patients(test))
            assert sorted([*train, *test], key=CASES.index) == CASES
            assert len(patients(test)) in (10 // folds, -(-10 // folds))
            tested += test
        assert sorted(tested, key=CASES.index) == CASES

    def test_seed_decides_and_the_order_of_the_cases_does_not(self) -> None:
        chosen = [patients(fold_of(CASES, 1, 4, seed)[1]) for seed in range(8)]
        assert patients(fold_of(CASES[::-1], 1, 4, 0)[1]) == chosen[0]
        assert len(set(map(frozenset, chosen))) > 4

    def test_impossible(self) -> None:
        with pytest.raises(DataError, match="10 patients cannot be divided into 11 folds"):
            fold_of(CASES, 1, 11, 0)
        for fold in (0, 5, -1):
            with pytest.raises(DataError, match=f"no fold {fold} of 4; they are numbered from 1"):
                fold_of(CASES, fold, 4, 0)


def fingerprint(**parts: list[Volume]) -> DataFingerprint:
    found = DataFingerprint()
    for part, volumes in parts.items():
        for one in volumes:
            found.add(part, one)
    return found


class TestDataFingerprint:
    def test_images_in_two_parts(self) -> None:
        one, other = volume("one", 1), volume("other", 2)
        shared = Volume("shared", np.concatenate((other.image[:1], volume("x", 3).image[:1])), other.label[:2])
        found = fingerprint(train=[one, other], validation=[volume("third", 4)], test=[shared])
        assert found.duplicates() == [{"test": "shared", "train": "other"}]

    def test_images_of_one_part_and_air_are_nobodys(self) -> None:
        one = volume("one", 1)
        air = Volume("air", np.zeros_like(one.image), one.label)
        assert fingerprint(train=[one, Volume("again", one.image, one.label), air], test=[air]).duplicates() == []

    def test_fingerprint_does_not_depend_on_storage_or_order(self) -> None:
        one, two = volume("one", 1), volume("two", 2)
        stored = Volume("one", np.asfortranarray(one.image), np.asfortranarray(one.label))
        assert fingerprint(train=[one, two]).digest() == fingerprint(train=[two, stored]).digest()

    def test_fingerprint_depends_on_everything_that_decides_a_result(self) -> None:
        one, two = volume("one", 1), volume("two", 2, (5.0, 1.0, 1.0))
        image, label = one.image.copy(), one.label.copy()
        image[1, 0, 2, 3] += np.float32(1e-3)
        label[1, 2, 3] ^= 1
        fingerprints = [
            found.digest()
            for found in (
                fingerprint(train=[one], test=[two]),
                fingerprint(train=[two], test=[one]),
                fingerprint(train=[one, two]),
                fingerprint(train=[one]),
                fingerprint(train=[Volume("one", one.image, label)], test=[two]),
                fingerprint(train=[Volume("one", image, one.label)], test=[two]),
                fingerprint(train=[Volume("renamed", one.image, one.label)], test=[two]),
                fingerprint(train=[one], test=[volume("two", 2)]),
                fingerprint(train=[one], test=[volume("two", 2, (5.0, 1.0, 1.01))]),
            )
        ]
        assert len(set(fingerprints)) == len(fingerprints)
        assert all(len(fingerprint) == 64 for fingerprint in fingerprints)


class TestStack:
    def test_slices_of_a_case_become_a_volume(self, tmp_path: object) -> None:
        whole = volume("one", 1)
        pieces = [Volume(str(z), whole.image[z : z + 1], whole.label[z : z + 1], (2, 1, 1)) for z in range(3)]
        stacked = stack_slices("one", pieces, lambda piece: piece)  # type: ignore[arg-type, return-value]
        assert (stacked.case, stacked.spacing) == ("one", (2, 1, 1))
        np.testing.assert_array_equal(stacked.image, whole.image)
        np.testing.assert_array_equal(stacked.label, whole.label)
