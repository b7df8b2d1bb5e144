"""The number format of products between hidden layers while networks are trained."""

import torch as th

PRECISIONS: dict[str, th.dtype] = {"float32": th.float32, "bfloat16": th.bfloat16}


def check_precision(precision: str, device: th.device) -> None:
    """
    :param precision: of products between hidden layers
    :param device: where they are computed
    :raises ValueError: it is not a key of ``PRECISIONS``, or the device would have to emulate it
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}.")
    if precision == "bfloat16" and device.type == "cpu" and not HAS_BFLOAT16:
        raise ValueError(
            "precision='bfloat16': this processor has no bfloat16 products (AVX512-BF16 or AMX) and would be slower than in "
            "float32. Use 'float32'; for a model saved elsewhere, load(..., precision='float32')."
        )


def _has_bfloat16() -> bool:
    try:
        # oneDNN also accepts processors on which it emulates bfloat16, three times slower than float32
        native = th.cpu._is_avx512_bf16_supported() or th.cpu._is_amx_tile_supported()
        return bool(native and th.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:  # these functions are private to PyTorch
        return False


HAS_BFLOAT16 = _has_bfloat16()
"""Whether this processor multiplies bfloat16 natively."""
