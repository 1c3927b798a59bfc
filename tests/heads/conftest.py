"""Fixtures of the tests of heads."""

import pytest


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a model as transformers saves it, made once each."""
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
