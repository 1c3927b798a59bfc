"""From the name of a checkpoint to packed weights, in memory or in a file.

source: what a name leads to (hub: on the Hugging Face hub), with lora's adapters added; packing: panels, by what
calibration found; store: the converted file; convert: from one to the other, or to llama2c's files.
"""
