"""The resident search engine: captured CUDA graphs over fused kernels, and a fallback that runs anywhere."""

from catalex.decoding.engine.batcher import Batcher
from catalex.decoding.engine.engine import Engine

__all__ = ["Batcher", "Engine"]
