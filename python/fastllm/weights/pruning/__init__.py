"""Pruning: weights of linear layers become zero, or whole layers go, before a model is packed.

    options: what is asked for -> prune: from a recipe to a pruned one, layer after layer
                                     |-> masks: which weights go, by the formulas of the papers
                                     |-> weights/layers: a layer alone, to run a text's hidden states through it
                                     '-> scratch: where pruned matrices lie until they are packed

All are imported from their own modules.
"""
