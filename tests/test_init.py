"""The public API: every name resolves, and importing the package is cheap."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import mypt


def modules_after(code: str) -> set[str]:
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(printed.stdout.split())


def test_importing_mypt_imports_nothing_heavy():
    loaded = modules_after("import mypt\nmypt.models.auto, mypt.models.__doc__, dir(mypt)")
    assert not loaded & {"torch", "transformers", "numpy", "datasets", "accelerate", "huggingface_hub"}


def test_presets_are_read_without_torch():
    loaded = modules_after("from mypt.models.presets import preset_dimensions\npreset_dimensions('modern-tiny')")
    assert not loaded & {"torch", "transformers", "numpy", "huggingface_hub"}


@pytest.mark.parametrize("name", mypt.__all__)
def test_every_public_name_resolves(name):
    value = getattr(mypt, name)
    assert name in dir(mypt)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__module__.startswith("mypt.")


def test_the_version_is_the_installed_packages():
    assert mypt.__version__ == version("mypt")


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known():
    with pytest.raises(AttributeError, match="no attribute 'GPT'; it offers"):
        _ = mypt.GPT
