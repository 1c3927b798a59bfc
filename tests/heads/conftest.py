"""Fixtures of the tests of heads."""

import pytest


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function from a name of MODELS to the folder of that model, saved by transformers once in a module of tests."""
    from helpers.families.sentence_transformers import MODELS

    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            model, words = MODELS[name]()
            model.save_pretrained(made[name])
            words.save_pretrained(made[name])
        return made[name]

    return folder
