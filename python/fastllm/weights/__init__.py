"""From the name of a checkpoint to packed weights, in memory or in a file.

    name -> source -> (lora) -> Recipe -> packing -> Stored: a model in memory
                                             |
                                             +----> packed: the same in a file of the cache folder, mapped later
                                             |
                                          convert -> store: the converted file, which is mapped and run
                                                  -> _llama2c: llama2.c's own files

source: from a name, here or on the Hugging Face hub (_hub), to a recipe and a tokenizer. lora: adapters added to a
checkpoint's weights. packing: from a recipe's tensors to panels (ahead: on several threads). calibration: by how much
each error matters on a text (text: the user's or our own; layers: a model layer by layer); budget: the type of each
matrix for a mean of bits. pruning: weights that become zero before that, layers that go. store: the converted file.
convert: writes one, or llama2.c's (_llama2c). packed: the cache of packed weights, in a bounded folder (folder).
cached: the models of the hub that are here.

All are imported from their own modules: a converted file needs store and source alone.
"""
