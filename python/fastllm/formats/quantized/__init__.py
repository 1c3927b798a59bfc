"""Turns a checkpoint that another library quantized (GPTQ, AWQ, MLX, FP8, ...) into one of plain matrices.

This stands between the formats, which read bytes, and the families. A scheme spreads a matrix over several tensors,
such as w.qweight, w.qzeros and w.scales; here they become one w.weight, whose rows are computed when they are read.
Tensors' names and types tell which scheme it is, for configs get lost when files are moved; the config only adds what
tensors cannot say. The table of the schemes that are read is in _schemes.py, those that are refused in _refused.py.
"""

from fastllm.formats.quantized._dequantize import dequantized, scheme

__all__ = ["dequantized", "scheme"]
