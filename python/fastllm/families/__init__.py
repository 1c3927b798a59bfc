"""The model families, a file each, which bring a checkpoint's own config and tensor names to the canonical ones.

`recipe(checkpoint)` finds the family by the name that the checkpoint gives itself, and applies it. To add a family,
write a file with a function from a Source to a Recipe, and its line in the table of architectures.py. helium.py is a
short example, and CONTRIBUTING.md, "Adding a family", walks through one. What families share:

    source          Source, which a family reads, and Recipe, which it returns
    names           finds a checkpoint's tensors whatever modules wrap the model
    _huggingface    keys that configs of the transformers library share
    _rope           that library's rotary parameters
    _decoder        the decoder of Llama and most others, as that library names it
    architectures   the table of families, and what the names of that library's classes say
    _translation    for files that are read by translation to Hugging Face's names: GGUF's, mindformers'
    _classifiers    heads that label texts or tokens
    _multimodal     the language model of a model that sees or hears too
    _choose         recipe(checkpoint)
"""

from fastllm.families._choose import recipe
from fastllm.families.source import Recipe, Source, Weight, half_split

__all__ = ["Recipe", "Source", "Weight", "half_split", "recipe"]
