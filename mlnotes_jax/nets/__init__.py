"""Layers and feed-forward networks.

Modules:
    mlp: Fully connected networks.
    normalization: Batch, layer, instance, group, switchable, weight and spectral.
    dropout: Random zeros, in expectation nothing.
    convolution: Convolution and pooling, with their sizes and costs.
    cnn: Convolutional networks, the notes' own among them.
    resnet: Residual networks, and their plain twins.
    embedding: One-hot vectors, learned embeddings, neighbours.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__, ["mlp", "normalization", "dropout", "convolution", "cnn", "resnet", "embedding"]
)
