"""How large an adapter, and with it a state, can be. What is larger is refused wherever it is read."""

MAX_RANK = 64
MAX_STATE_HEADS = 64
MAX_LAYERS = 512  # of the base model; llama.cpp's LLAMA_MAX_LAYERS
