"""Register MyPT with transformers' Auto classes and with peft once they are imported, without importing them."""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .configuration_mypt import MyPTConfig

    AutoConfig.register("mypt", MyPTConfig, exist_ok=True)


def _register_targets() -> None:
    """Which layers peft's methods adapt by default: as in Llama, whose names MyPT's layers have."""
    constants = sys.modules["peft.utils.constants"]
    for name, table in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and "llama" in table:
            table.setdefault("mypt", table["llama"])


# `modeling_mypt` registers its classes itself; it needs `modeling_layers`, which imports `modeling_auto` in its first
# lines. Whichever of the two comes first, our module is imported when both are complete.
_AFTER_IMPORT = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": lambda: importlib.import_module("transformers.modeling_layers"),
    "transformers.modeling_layers": lambda: importlib.import_module("mypt.models.modeling_mypt"),
    "peft.utils.constants": _register_targets,
}


class _ModuleWatcher(MetaPathFinder):
    """Finds these modules as Python would, and calls the function above when one has been executed."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname not in _AFTER_IMPORT or (spec := PathFinder.find_spec(fullname, path, target)) is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module) -> None:
            execute(module)
            _AFTER_IMPORT[fullname]()

        spec.loader.exec_module = execute_and_register
        return spec


def install() -> None:
    """Watch for these modules, and register at once with those that are already imported."""
    sys.meta_path.insert(0, _ModuleWatcher())
    for name, register in _AFTER_IMPORT.items():
        if name in sys.modules:
            register()
