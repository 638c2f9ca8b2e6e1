"""The precisions a model can be held or computed in, by the names that options and records use."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
