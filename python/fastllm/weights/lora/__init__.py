"""LoRA adapters (Hu et al., 2021), as the PEFT library saves them, added to the weights of their model.

https://arxiv.org/abs/2106.09685. Of a matrix W [d, n] an adapter has two thin factors, A [r, n] and B [d, r]:

        n               r       n
    +-------+         +---+  +-----+
  d |   W   |  +  s * | B |  |  A  | r         W' = W + s B A,  s = alpha / r
    +-------+         |   |  +-----+
                      +---+ d

The sum is computed for the rows that are read, while weights are packed, so no second copy of the model is held.
Tensors are matched by the checkpoint's own names, before a family reads them.
"""

from fastllm.weights.lora.adapters import check_has_no_factors, check_is_model, merged

__all__ = ["check_has_no_factors", "check_is_model", "merged"]
