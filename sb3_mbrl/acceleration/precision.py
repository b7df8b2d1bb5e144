"""The number format of products between hidden layers while networks are trained."""

import torch as th

PRECISIONS: dict[str, th.dtype] = {"float32": th.float32, "bfloat16": th.bfloat16}


def check_precision(precision: str, device: th.device) -> None:
    """
    :param precision: number format of products between hidden layers
    :param device: where they are computed
    :raises ValueError: ``precision`` is not a key of ``PRECISIONS``, or the device would have to emulate it
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}.")
    if precision == "bfloat16" and device.type == "cpu" and not HAS_BFLOAT16:
        raise ValueError(
            "precision='bfloat16': this processor cannot multiply bfloat16 (it has neither AVX512-BF16 nor AMX) and would be "
            "slower than in float32. Use 'float32'; for a model that was saved on another machine, "
            "load(..., precision='float32')."
        )


def _has_bfloat16() -> bool:
    try:
        # oneDNN also accepts CPUs on which it emulates bfloat16, three times slower than float32
        native = th.cpu._is_avx512_bf16_supported() or th.cpu._is_amx_tile_supported()
        return bool(native and th.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:  # these functions are private to PyTorch
        return False


HAS_BFLOAT16 = _has_bfloat16()
"""Whether this CPU multiplies bfloat16 natively."""
