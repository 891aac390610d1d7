"""Triton kernels of the engine. Import them only where triton is installed; `fused` launches them.

Letters: R rows, B users, T tokens, W beams, H model width, h heads, d head width, F feed-forward width, V
vocabulary. Residuals are float32; products are in the weights' type and add up in float32.
"""
