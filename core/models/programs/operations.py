"""The operations of torch.ops.aten that a program may contain, and what each becomes in the translated network."""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from core.models.programs.precision import FLOAT32

# Operations replaced by a torch function that core.generation.fusion and core.quantization.placement recognize. Arguments stay the same.
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "silu": F.silu, "sigmoid": torch.sigmoid,
    "mul": operator.mul, "cat": torch.cat, "mean": torch.mean, "flatten": torch.flatten, "view": torch.reshape, "reshape": torch.reshape,
    "_unsafe_view": torch.reshape, "permute": torch.permute, "transpose": torch.transpose, "squeeze": torch.squeeze,
    "unsqueeze": torch.unsqueeze, "chunk": torch.chunk, "split": torch.split, "split_with_sizes": torch.split,
    "max_pool2d": torch.max_pool2d, "max_pool2d_with_indices": torch.max_pool2d, "avg_pool2d": F.avg_pool2d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d, "_adaptive_avg_pool2d": F.adaptive_avg_pool2d,
}  # fmt: skip
# Operations that become layers: their tensors, and what the layer calls each.
LAYERS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("conv2d", "convolution", "linear"), {"weight": "weight", "bias": "bias"}),
    **dict.fromkeys(
        ("batch_norm", "_native_batch_norm_legit_no_training"),
        {name: name for name in ("weight", "bias", "running_mean", "running_var")},
    ),
    "addmm": {"mat2": "weight", "self": "bias"},
    "mm": {"mat2": "weight"},
}
# Operations that create a tensor from numbers, on the device of the images, and their arguments that say where and how it is stored.
CREATED = frozenset({"arange", "full", "linspace", "ones", "scalar_tensor", "zeros"})
STORAGE = frozenset({"device", "layout", "pin_memory"})
# Operations kept unchanged: they compute tensors from tensors, write to no argument and draw no random numbers.
KEPT = CREATED | frozenset({
    "abs", "add", "adaptive_max_pool2d", "addmm", "amax", "amin", "argmax", "avg_pool1d", "bmm", "celu", "ceil", "channel_shuffle", "clamp",
    "clamp_max", "clamp_min", "constant_pad_nd", "conv1d", "conv2d", "conv_transpose2d", "convolution", "cos", "div", "elu", "eq", "erf",
    "exp", "expm1", "expand", "expand_as", "flip", "floor", "floor_divide", "gather", "ge", "gelu", "glu", "group_norm", "gt", "hardtanh",
    "index", "index_select", "instance_norm", "layer_norm", "le", "leaky_relu", "linalg_vector_norm", "linear", "log", "log10", "log1p",
    "log2", "log_sigmoid", "log_softmax", "_log_softmax", "logical_and", "logical_not", "logical_or", "logsumexp", "lt", "masked_fill",
    "matmul", "maximum", "minimum", "mish", "mm", "mul", "narrow", "native_channel_shuffle", "ne", "neg", "norm", "pad", "pixel_shuffle",
    "pixel_unshuffle", "pow", "prelu", "reciprocal", "reflection_pad2d", "remainder", "repeat", "replication_pad2d", "rms_norm", "roll",
    "round", "rsqrt", "rsub", "scaled_dot_product_attention", "select", "selu", "sign", "sin", "slice", "softmax", "_softmax", "softplus",
    "softsign", "sqrt", "square", "std", "sub", "sum", "swapaxes", "t", "tanh", "threshold", "to", "_to_copy", "topk", "unbind",
    "unflatten", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d", "var", "var_mean", "where", "zeros_like", "ones_like",
    "movedim", "T", "numpy_T", "mT", "mH", "_weight_norm", "_weight_norm_interface", "dot", "vdot", "mv", "tril", "triu", "matrix_exp",
    "batch_norm", "fake_quantize_per_tensor_affine", "linalg_householder_product", "diagonal", "fake_quantize_per_channel_affine",
    "full_like", "type_as",
})  # fmt: skip
# Operations that return their input: dropout is inactive in evaluation mode, and `reshape`, used for `view`, needs no contiguous tensor.
IDENTITIES = frozenset({
    "dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "lift_fresh",
})  # fmt: skip
# Operations that return their input when both are float32.
CASTS = frozenset({"to", "_to_copy", "type_as"})
# Assertions about the sizes that the program was exported with.
CHECKS = frozenset({"_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size"})
# Operations whose result may share memory with their input.
VIEWS = frozenset({
    "view", "reshape", "_unsafe_view", "flatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "expand_as", "slice",
    "select", "split", "split_with_sizes", "chunk", "unbind", "narrow", "detach", "alias", "contiguous", "dropout", "to", "unflatten",
    "swapaxes", "movedim", "T", "numpy_T", "diagonal",
})  # fmt: skip
# Arithmetic on sizes.
NUMBERS: Mapping[str, Callable[..., Any]] = {
    "_operator.add": operator.add, "_operator.sub": operator.sub, "_operator.mul": operator.mul, "_operator.floordiv": operator.floordiv,
    "_operator.mod": operator.mod, "_operator.neg": operator.neg, "_operator.eq": operator.eq, "_operator.ne": operator.ne,
    "_operator.lt": operator.lt, "_operator.le": operator.le, "_operator.gt": operator.gt, "_operator.ge": operator.ge,
}  # fmt: skip
OPERATION = re.compile(r"torch\.ops\.aten\.(\w{1,60})\.(\w{1,60})", re.ASCII)
WORD = re.compile(r"[a-z_]{1,30}")  # string arguments, such as a padding mode
DTYPES = {4: torch.int32, 5: torch.int64, FLOAT32: torch.float32, 12: torch.bool}  # of casts, see core.models.programs.precision
FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
